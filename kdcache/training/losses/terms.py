"""What a loss comes to."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LossTerms(NamedTuple):
    """A loss and what it is made of; each a mean over the batch, a scalar."""

    total: Tensor
    cross_entropy: Tensor
    """With the labels, before its weight."""
    distillation: Tensor | None
    """What the method measures between student and teacher, before its weight; None without a
    teacher."""
    of_each: Tensor | None
    """(B,) what each sample gives to the total, which is its mean; None where the loss compares
    samples with each other (DIST)."""
    alpha: float | None = None
    """Weight of the distillation in this step, before a method's own warm-up; None without a
    teacher."""
