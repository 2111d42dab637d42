"""Decoupled knowledge distillation: how sure of the label, and which of the other classes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kdcache.errors import ConfigError
from kdcache.training.losses.hinton import divergence
from kdcache.training.losses.method import Method


@dataclass(frozen=True)
class Dkd(Method):
    """T^2 (alpha TCKD + beta NCKD).

    TCKD is the divergence of (p, 1 - p) with p the probability of the label, NCKD the divergence of
    the other classes' probabilities divided by 1 - p. KL is TCKD + (1 - p of the teacher) NCKD:
    there a sure teacher's opinion of the other classes hardly counts.

    The paper adds it to the whole cross-entropy; `--alpha 0.5` is half of that sum.

    References:
        Zhao et al. 2022, "Decoupled Knowledge Distillation", equation 7; weights of its CIFAR-100
        recipe, whose weight grows over the first 20 of 240 epochs.
    """

    alpha: float = 1.0
    """Weight of TCKD, at least 0."""
    beta: float = 8.0
    """Weight of NCKD, at least 0; the paper has 1 to 8, more for a surer teacher."""
    warm_up: float = 0.08
    """Share of the run's steps over which the method's weight grows from 0, in [0, 1]."""

    name: ClassVar[str] = "dkd"
    default_alpha: ClassVar[float] = 0.5
    takes_mixed: ClassVar[bool] = False
    takes_standardised: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the weights."""
        if min(self.alpha, self.beta) < 0 or not 0 < max(self.alpha, self.beta) < math.inf:
            raise ConfigError(
                parameter="loss", value=self, rule="weights of at least 0 and one of them above"
            )
        if not 0 <= self.warm_up <= 1:
            raise ConfigError(f"warm_up of dkd is {self.warm_up}, expected a share in [0, 1]")

    def ramp(self, progress: float) -> float:
        """Return progress / warm_up, at most 1."""
        return min(progress / self.warm_up, 1.0) if self.warm_up else 1.0

    def __call__(
        self, log_student_BC: Tensor, log_teacher_BC: Tensor, labels_B: Tensor, temperature: float
    ) -> Tensor:
        """Return the two weighted divergences of each sample, times T^2, (B,)."""
        if log_student_BC.shape[1] == 1:
            return 0 * log_student_BC[:, 0]  # sure of the label, and no other class
        student, teacher = (_decoupled(log, labels_B) for log in (log_student_BC, log_teacher_BC))
        target_B = divergence(teacher[0], student[0])
        others_B = divergence(teacher[1], student[1])
        return temperature**2 * (self.alpha * target_B + self.beta * others_B)


def _decoupled(log_probs_BC: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return log (p, 1 - p) of the label, (B, 2), and of the classes among the others, (B, C).

    The label has 0 among the others, in all rows alike, which adds nothing to a divergence. 1 - p
    is summed from the others, so it is exact where p is nearly 1.
    """
    labels_B1 = labels_B[:, None]
    others_B1 = log_probs_BC.scatter(1, labels_B1, -math.inf).logsumexp(dim=1, keepdim=True)
    binary_B2 = torch.cat([log_probs_BC.gather(1, labels_B1), others_B1], dim=1)
    return binary_B2, (log_probs_BC - others_B1).scatter(1, labels_B1, 0.0)
