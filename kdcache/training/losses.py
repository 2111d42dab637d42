"""The distillation loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class LossParts(NamedTuple):
    """A loss and what it is made of; each a mean over the batch, a scalar."""

    total: Tensor
    cross_entropy: Tensor
    distillation: Tensor | None
    """T^2 KL, before its weight; None where there is no teacher."""


def distillation_loss(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    *,
    temperature: float,
    alpha: float,
) -> LossParts:
    """Return (1 - alpha) cross-entropy + alpha T^2 KL(teacher_T || student_T).

    Args:
        student_BC: (B, C) float logits.
        teacher_BC: (B, C) float logits; adding a constant to a row changes nothing.
        labels_B: (B,) int64 in [0, C).
        temperature: T, above 0.
        alpha: weight of the distillation term, in [0, 1].

    References:
        Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network", section 2 (the
        T^2) and 2.1 (the limit of high temperature).
    """
    log_s_BC = functional.log_softmax(student_BC / temperature, dim=1)
    log_t_BC = functional.log_softmax(teacher_BC / temperature, dim=1)
    divergence = functional.kl_div(log_s_BC, log_t_BC, reduction="batchmean", log_target=True)
    distillation = temperature**2 * divergence
    cross_entropy = functional.cross_entropy(student_BC, labels_B)
    total = (1 - alpha) * cross_entropy + alpha * distillation
    return LossParts(total, cross_entropy, distillation)


def reshape_logits(teacher_BC: Tensor, labels_B: Tensor, constants_C: Tensor) -> Tensor:
    """Return z / std(z) * k of the label's class: every row of a class gets the class's deviation.

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


def label_loss(student_BC: Tensor, labels_B: Tensor) -> LossParts:
    """Return the cross-entropy with the labels alone."""
    cross_entropy = functional.cross_entropy(student_BC, labels_B)
    return LossParts(cross_entropy, cross_entropy, None)
