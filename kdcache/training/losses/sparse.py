"""KD from sparse probabilities, without decoding the teacher's rows to (B, C)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from kdcache.store.codecs.sparse import SparseProbabilities

MIN_CLASSES = 1_000
"""With fewer classes, decoding is faster (measured by `benchmarks/losses.py`)."""


def sparse_divergence(
    student_BC: Tensor, teacher: SparseProbabilities, temperature: float
) -> Tensor:
    """Return KL(teacher || softmax(student / T)) of each sample, (B,) in nats.

    The teacher's probability of class c is r + e_c, where e_c = 0 except for a few classes. So the
    sum over all classes of p_c log q_c is r times the sum of log q_c, plus a short sum.

    Args:
        student_BC: (B, C) float logits.
        teacher: the teacher's probabilities at T.
        temperature: T, above 0.
    """
    found: Tensor = _SparseDivergence.apply(student_BC, temperature, *teacher)
    return found


class _SparseDivergence(torch.autograd.Function):
    """The divergence, with a backward pass that allocates a single (B, C) matrix."""

    @staticmethod
    def forward(
        ctx: Any,
        student_BC: Tensor,
        temperature: float,
        indices_BK: Tensor,
        excess_BK: Tensor,
        rest_B1: Tensor,
        negative_entropy_B: Tensor,
    ) -> Tensor:
        log_student_BC = functional.log_softmax(student_BC / temperature, dim=1)
        ctx.save_for_backward(log_student_BC, indices_BK, excess_BK, rest_B1)
        ctx.temperature = temperature
        sparse_sum_B = (excess_BK * log_student_BC.gather(1, indices_BK)).sum(dim=1)
        return negative_entropy_B - sparse_sum_B - rest_B1[:, 0] * log_student_BC.sum(dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_B: Tensor) -> tuple[Tensor | None, ...]:
        log_student_BC, indices_BK, excess_BK, rest_B1 = ctx.saved_tensors
        scale_B1 = grad_B[:, None] / ctx.temperature
        gradient_BC = log_student_BC.exp().sub_(rest_B1).mul_(scale_B1)
        gradient_BC.scatter_add_(1, indices_BK, -scale_B1 * excess_BK)
        return gradient_BC, None, None, None, None, None
