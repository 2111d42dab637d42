"""Logit standardisation: student and teacher agree in shape, not in size."""

from __future__ import annotations

import torch
from torch import Tensor

DEFAULT_TEMPERATURE = 2.0
"""The base temperature of the paper."""


def standardise(logits_BC: Tensor) -> Tensor:
    """Return each row with mean 0 and standard deviation 1 (divisor C); a row of equal logits as 0.

    Done to both, it leaves a student free in the size of its logits, and gives every sample a
    temperature of its own: T times the row's deviation.

    References:
        Sun et al. 2024, "Logit Standardization in Knowledge Distillation", algorithm 1. (Its
        published code divides by the deviation with divisor C - 1.)
    """
    variance_B1, mean_B1 = torch.var_mean(logits_BC, dim=1, correction=0, keepdim=True)
    return (logits_BC - mean_B1) / torch.where(variance_B1 > 0, variance_B1, 1).sqrt()
