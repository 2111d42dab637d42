"""Decoupled knowledge distillation (DKD): the target class and the other classes separately."""

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

    With p the probability of the label, TCKD is the KL divergence of (p, 1 - p), and NCKD that of
    the other classes' probabilities, divided by 1 - p. Plain KL is TCKD + (1 - p_teacher) NCKD, so
    a confident teacher's probabilities of the other classes hardly count there.

    The paper adds this loss to the full cross-entropy; `--alpha 0.5` is half of that sum.

    References:
        Zhao et al. 2022, "Decoupled Knowledge Distillation", equation 7. The defaults are those of
        its CIFAR-100 recipe, which warms up over the first 20 of 240 epochs.
    """

    alpha: float = 1.0
    """Weight of TCKD, >= 0."""
    beta: float = 8.0
    """Weight of NCKD, >= 0. The paper uses 1 to 8, larger for more confident teachers."""
    warm_up: float = 0.08
    """Fraction of the run's steps over which the weight of this loss grows from 0, in [0, 1]."""

    name: ClassVar[str] = "dkd"
    default_alpha: ClassVar[float] = 0.5
    takes_mixed: ClassVar[bool] = False
    takes_standardised: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the range of the weights and of the warm-up."""
        if min(self.alpha, self.beta) < 0 or not 0 < max(self.alpha, self.beta) < math.inf:
            raise ConfigError(
                parameter="loss", value=self, rule="finite weights >= 0, at least one of them > 0"
            )
        if not 0 <= self.warm_up <= 1:
            raise ConfigError(f"warm_up of dkd is {self.warm_up}, expected a fraction in [0, 1]")

    def ramp(self, progress: float) -> float:
        """Return min(progress / warm_up, 1)."""
        return min(progress / self.warm_up, 1.0) if self.warm_up else 1.0

    def __call__(
        self, log_student_BC: Tensor, log_teacher_BC: Tensor, labels_B: Tensor, temperature: float
    ) -> Tensor:
        """Return T^2 (alpha TCKD + beta NCKD) of each sample, (B,)."""
        if log_student_BC.shape[1] == 1:
            return 0 * log_student_BC[:, 0]  # with one class, both divergences are 0
        student, teacher = (_decoupled(log, labels_B) for log in (log_student_BC, log_teacher_BC))
        target_B = divergence(teacher[0], student[0])
        others_B = divergence(teacher[1], student[1])
        return temperature**2 * (self.alpha * target_B + self.beta * others_B)


def _decoupled(log_probs_BC: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return log (p, 1 - p), (B, 2), and the other classes' log-probabilities given them, (B, C).

    The entry of the label in the second result is 0 in every row, so it adds nothing to a
    divergence. 1 - p is the sum over the other classes, so it is accurate if p is close to 1.
    """
    labels_B1 = labels_B[:, None]
    others_B1 = log_probs_BC.scatter(1, labels_B1, -math.inf).logsumexp(dim=1, keepdim=True)
    binary_B2 = torch.cat([log_probs_BC.gather(1, labels_B1), others_B1], dim=1)
    return binary_B2, (log_probs_BC - others_B1).scatter(1, labels_B1, 0.0)
