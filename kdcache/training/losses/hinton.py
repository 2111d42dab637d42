"""Knowledge distillation (KD): the KL divergence of softened probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from kdcache.training.losses.method import Method


@dataclass(frozen=True)
class Kd(Method):
    """T^2 KL(teacher_T || student_T).

    The factor T^2 keeps the size of the gradient about the same for every T.

    References:
        Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network", section 2 (the
        T^2) and 2.1 (the limit of high temperature).
    """

    name: ClassVar[str] = "kd"
    default_alpha: ClassVar[float] = 0.9
    takes_mixed: ClassVar[bool] = True
    takes_standardised: ClassVar[bool] = True

    def __call__(
        self, log_student_BC: Tensor, log_teacher_BC: Tensor, labels_B: Tensor, temperature: float
    ) -> Tensor:
        """Return T^2 KL of each sample, (B,); the labels are not used."""
        del labels_B
        return temperature**2 * divergence(log_teacher_BC, log_student_BC)


def divergence(log_p_BC: Tensor, log_q_BC: Tensor) -> Tensor:
    """Return KL(p || q) of each row, (B,) in nats. The log-probabilities must be finite."""
    return (log_p_BC.exp() * (log_p_BC - log_q_BC)).sum(dim=1)
