"""DIST: correlate the student's and the teacher's probabilities."""

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
    """beta mean(1 - r_inter) + gamma mean(1 - r_intra).

    r is Pearson's correlation of the student's and the teacher's probabilities at T. r_inter is
    taken over the classes, for each sample; r_intra over the samples of the batch, for each class.
    If all numbers are equal, r = 0.

    As in the paper there is no factor T^2 (its published code has one): r does not depend on the
    size of the differences. The paper adds this loss to the full cross-entropy; `--alpha 0.5` is
    half of that sum.

    References:
        Huang et al. 2022, "Knowledge Distillation from A Stronger Teacher", equations 8 to 10.
    """

    beta: float = 2.0
    """Weight of the inter-class term, >= 0."""
    gamma: float = 2.0
    """Weight of the intra-class term, >= 0."""

    name: ClassVar[str] = "dist"
    default_alpha: ClassVar[float] = 0.5
    takes_mixed: ClassVar[bool] = True
    takes_standardised: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the range of the weights."""
        if min(self.beta, self.gamma) < 0 or not 0 < max(self.beta, self.gamma) < math.inf:
            raise ConfigError(
                parameter="loss", value=self, rule="finite weights >= 0, at least one of them > 0"
            )

    def __call__(
        self, log_student_BC: Tensor, log_teacher_BC: Tensor, labels_B: Tensor, temperature: float
    ) -> Tensor:
        """Return the loss of the batch, a scalar; labels and temperature are not used."""
        del labels_B, temperature
        student_BC, teacher_BC = log_student_BC.exp(), log_teacher_BC.exp()
        inter = 1 - _correlation(student_BC, teacher_BC, dim=1).mean()
        intra = 1 - _correlation(student_BC, teacher_BC, dim=0).mean()
        return self.beta * inter + self.gamma * intra


def _correlation(first: Tensor, second: Tensor, *, dim: int) -> Tensor:
    """Return Pearson's r along a dimension."""
    return (_unit_deviations(first, dim) * _unit_deviations(second, dim)).sum(dim=dim)


def _unit_deviations(values: Tensor, dim: int) -> Tensor:
    """Return the deviations from the mean, scaled to length 1; 0 if all values are equal."""
    centred = values - values.mean(dim=dim, keepdim=True)
    # Scale before squaring: with many classes, the squares of probabilities underflow in float32.
    largest = centred.detach().abs().amax(dim=dim, keepdim=True)
    scaled = centred / torch.where(largest > 0, largest, 1)
    squares = (scaled**2).sum(dim=dim, keepdim=True)
    return scaled / torch.where(largest > 0, squares, 1).sqrt()
