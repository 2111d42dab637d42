"""Logit standardisation: compare the shape of the logits, not their scale."""

from __future__ import annotations

import torch
from torch import Tensor

DEFAULT_TEMPERATURE = 2.0
"""The base temperature in the paper."""


def standardise(logits_BC: Tensor) -> Tensor:
    """Return each row with mean 0 and standard deviation 1 (divisor C); equal logits become 0.

    It is applied to student and teacher. Then the loss does not depend on the scale of the
    student's logits, and each sample has its own temperature, T times the row's deviation.

    References:
        Sun et al. 2024, "Logit Standardization in Knowledge Distillation", algorithm 1. (Its
        published code divides by the deviation with divisor C - 1.)
    """
    variance_B1, mean_B1 = torch.var_mean(logits_BC, dim=1, correction=0, keepdim=True)
    return (logits_BC - mean_B1) / torch.where(variance_B1 > 0, variance_B1, 1).sqrt()
