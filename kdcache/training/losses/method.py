"""The base class of distillation losses, which compare two rows of log-probabilities."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import ClassVar

from torch import Tensor

from kdcache.training.losses.form import Form


@dataclass(frozen=True)
class Method(ABC):
    """A distillation loss. Its fields are its own weights, which `--loss` sets."""

    name: ClassVar[str]
    """Name in `--loss`."""

    default_alpha: ClassVar[float]
    """Default of `--alpha` for this loss."""

    takes_mixed: ClassVar[bool]
    """True if the loss works with mixup and CutMix, where an image has two labels."""

    takes_standardised: ClassVar[bool]
    """True if a paper defines logit standardisation for this loss."""

    def __str__(self) -> str:
        return str(Form(self.name, asdict(self)))

    def ramp(self, progress: float) -> float:  # noqa: ARG002  (most losses have no warm-up)
        """Return the factor of the weight, in [0, 1], at a point of the run in [0, 1]."""
        return 1.0

    @abstractmethod
    def __call__(
        self, log_student_BC: Tensor, log_teacher_BC: Tensor, labels_B: Tensor, temperature: float
    ) -> Tensor:
        """Return the distillation loss of each sample, (B,), or a scalar for the batch.

        Args:
            log_student_BC: (B, C) log-probabilities of the student at temperature T.
            log_teacher_BC: (B, C) log-probabilities of the teacher at T, without a gradient.
            labels_B: (B,) int64 in [0, C).
            temperature: T, above 0, for losses with a factor T^2.
        """
