"""Probabilities of which most are equal, without a number for every class."""

from __future__ import annotations

from typing import Any, NamedTuple


class SparseProbabilities(NamedTuple):
    """A batch of rows of probabilities p: one number for all classes, and more for a few."""

    indices: Any
    """(B, K) int64 classes; one that stands here twice has both its numbers."""
    excess: Any
    """(B, K) float32, what these classes have beyond `rest`."""
    rest: Any
    """(B, 1) float32, the probability of every class that is not named."""
    negative_entropy: Any
    """(B,) float32, the sum of p log p over all classes."""
