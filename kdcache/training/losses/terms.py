"""The value of a loss and its terms."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LossTerms(NamedTuple):
    """A loss and its terms; each is a scalar, the mean over the batch."""

    total: Tensor
    cross_entropy: Tensor
    """Cross-entropy with the labels, before its weight."""
    distillation: Tensor | None
    """Distillation loss between student and teacher, before its weight; None without a teacher."""
    of_each: Tensor | None
    """(B,) what each sample gives to the total, which is its mean; None where the loss compares
    samples with each other (DIST)."""
    alpha: float | None = None
    """Weight of the distillation in this step, before a method's own warm-up; None without a
    teacher."""
