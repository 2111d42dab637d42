"""The value of a loss and its terms."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LossTerms(NamedTuple):
    """A loss and its terms. Each is a scalar, the mean over the batch, unless stated otherwise."""

    total: Tensor
    cross_entropy: Tensor
    """Cross-entropy with the labels, unweighted."""
    distillation: Tensor | None
    """Distillation loss, unweighted; None without a teacher."""
    per_sample: Tensor | None
    """(B,) total loss of each sample; `total` is its mean. None if the loss compares samples with
    each other (DIST)."""
    alpha: float | None = None
    """Weight of the distillation loss in this step, before the loss's own warm-up; None without a
    teacher."""
