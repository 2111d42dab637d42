"""MDSLR's logit reshaping: all rows of a class get the same standard deviation."""

from __future__ import annotations

import torch
from torch import Tensor


def reshape_logits(teacher_BC: Tensor, labels_B: Tensor, constants_C: Tensor) -> Tensor:
    """Return z / std(z) * k, (B, C), with the constant k of the label's class.

    The standard deviation has the divisor C - 1. A row of equal logits is returned unchanged.

    Args:
        teacher_BC: (B, C) float logits z.
        labels_B: (B,) int64 in [0, C).
        constants_C: (C,) float, the constants k from `LogitStore.reshaping_constants`.

    References:
        Chen et al. 2025, "Medium-Difficulty Samples Constitute Smoothed Decision Boundary for
        Knowledge Distillation on Pruned Datasets".
    """
    if teacher_BC.shape[1] == 1:
        return teacher_BC
    deviation_B1 = teacher_BC.std(dim=1, keepdim=True)
    target_B1 = constants_C[labels_B, None].to(teacher_BC.dtype)
    return torch.where(deviation_B1 > 0, teacher_BC / deviation_B1 * target_B1, teacher_BC)
