"""MDSLR's reshaping: every row of a class gets the class's deviation."""

from __future__ import annotations

import torch
from torch import Tensor


def reshape_logits(teacher_BC: Tensor, labels_B: Tensor, constants_C: Tensor) -> Tensor:
    """Return z / std(z) * k of the label's class.

    Args:
        teacher_BC: (B, C) float logits z; std has the divisor C - 1. A row of equal logits stays.
        labels_B: (B,) int64 in [0, C).
        constants_C: (C,) float, k: `LogitStore.reshaping_constants`.

    References:
        Chen et al. 2025, "Medium-Difficulty Samples Constitute Smoothed Decision Boundary for
        Knowledge Distillation on Pruned Datasets".
    """
    if teacher_BC.shape[1] == 1:
        return teacher_BC
    deviation_B1 = teacher_BC.std(dim=1, keepdim=True)
    wanted_B1 = constants_C[labels_B, None].to(teacher_BC.dtype)
    return torch.where(deviation_B1 > 0, teacher_BC / deviation_B1 * wanted_B1, teacher_BC)
