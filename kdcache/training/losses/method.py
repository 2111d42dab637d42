"""What a distillation method is: a comparison of two rows of log-probabilities."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import ClassVar

from torch import Tensor

from kdcache.training.losses.form import Form


@dataclass(frozen=True)
class Method(ABC):
    """Compares a student with its teacher. Its fields are its own weights."""

    name: ClassVar[str]
    """By which `--loss` calls it."""

    default_alpha: ClassVar[float]
    """Weight beside the cross-entropy when the user does not say."""

    takes_mixed: ClassVar[bool]
    """Whether it is defined for a mixture of two teacher's answers, which has no one label."""

    takes_standardised: ClassVar[bool]
    """Whether logit standardisation is published for it."""

    def __str__(self) -> str:
        return str(Form(self.name, asdict(self)))

    def ramp(self, progress: float) -> float:  # noqa: ARG002  (most have none)
        """Return the share of its weight that it has at a point of the run in [0, 1]."""
        return 1.0

    @abstractmethod
    def __call__(
        self, log_student_BC: Tensor, log_teacher_BC: Tensor, labels_B: Tensor, temperature: float
    ) -> Tensor:
        """Return the distillation loss of each sample, (B,), or one number for the batch.

        Args:
            log_student_BC: (B, C) log-probabilities at the temperature.
            log_teacher_BC: (B, C) likewise, without a gradient.
            labels_B: (B,) int64 in [0, C).
            temperature: T, above 0, for the factor T^2 of those that have it.
        """
