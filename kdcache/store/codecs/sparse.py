"""A sparse form of probabilities that are equal for most classes."""

from __future__ import annotations

from typing import Any, NamedTuple


class SparseProbabilities(NamedTuple):
    """Probabilities p of a batch: `rest` for every class, plus `excess` for K classes."""

    indices: Any
    """(B, K) int64 classes; for a class that occurs twice, both excesses are added."""
    excess: Any
    """(B, K) float32, the probabilities of these classes minus `rest`."""
    rest: Any
    """(B, 1) float32, the probability of every class that is not in `indices`."""
    negative_entropy: Any
    """(B,) float32, the sum of p log p over all classes."""
