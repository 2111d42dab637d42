"""DIST: what the probabilities have in common, instead of what they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kdcache.errors import ConfigError
from kdcache.training.losses.method import Method


@dataclass(frozen=True)
class Dist(Method):
    """Beta times the mean of 1 - r over the rows, and gamma times that over the columns.

    r is Pearson's correlation of the student's and the teacher's probabilities at T: over the
    classes for each sample (inter-class), over the samples of the batch for each class
    (intra-class). A row or column of equal numbers correlates with nothing: r = 0.

    The paper has no factor T^2, and needs none: r does not see how large differences are. (Its
    published code has one.) It adds this to the whole cross-entropy; `--alpha 0.5` is half of that.

    References:
        Huang et al. 2022, "Knowledge Distillation from A Stronger Teacher", equations 8 to 10.
    """

    beta: float = 2.0
    """Weight between the classes, at least 0."""
    gamma: float = 2.0
    """Weight within the classes, at least 0."""

    name: ClassVar[str] = "dist"
    default_alpha: ClassVar[float] = 0.5
    takes_mixed: ClassVar[bool] = True
    takes_standardised: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the weights."""
        if min(self.beta, self.gamma) < 0 or not 0 < max(self.beta, self.gamma) < math.inf:
            raise ConfigError(
                parameter="loss", value=self, rule="weights of at least 0 and one of them above"
            )

    def __call__(
        self, log_student_BC: Tensor, log_teacher_BC: Tensor, labels_B: Tensor, temperature: float
    ) -> Tensor:
        """Return one number for the batch; the labels do not count."""
        del labels_B, temperature
        student_BC, teacher_BC = log_student_BC.exp(), log_teacher_BC.exp()
        inter = 1 - _correlation(student_BC, teacher_BC, dim=1).mean()
        intra = 1 - _correlation(student_BC, teacher_BC, dim=0).mean()
        return self.beta * inter + self.gamma * intra


def _correlation(first: Tensor, second: Tensor, *, dim: int) -> Tensor:
    """Return Pearson's r along a dimension."""
    return (_direction(first, dim) * _direction(second, dim)).sum(dim=dim)


def _direction(values: Tensor, dim: int) -> Tensor:
    """Return the deviations from the mean with length 1, or 0 where there are none."""
    centred = values - values.mean(dim=dim, keepdim=True)
    # Scaled first: the square of a probability of many classes would leave float32's range.
    largest = centred.detach().abs().amax(dim=dim, keepdim=True)
    scaled = centred / torch.where(largest > 0, largest, 1)
    squares = (scaled**2).sum(dim=dim, keepdim=True)
    return scaled / torch.where(largest > 0, squares, 1).sqrt()
