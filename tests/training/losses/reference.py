"""The losses in numpy and float64, from the papers' formulas; and what they are tried on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from kdcache.loader.staging import Rows
from kdcache.options import TrainOptions
from kdcache.store.codecs.dense import Float32
from kdcache.training.losses.loss import Loss
from kdcache.training.losses.mix import Mix
from kdcache.training.losses.settings import LossSettings
from kdcache.training.losses.terms import LossTerms

Array = np.ndarray


def softmax(logits: Array) -> Array:
    """Probabilities of each row."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def kl(p: Array, q: Array) -> Array:
    """KL(p || q) of each row."""
    return np.where(p > 0, p * np.log(np.where(p > 0, p, 1) / q), 0.0).sum(axis=1)


def cross_entropy(student: Array, labels: Array) -> Array:
    """-log p of the label, of each row."""
    return -np.log(softmax(student)[np.arange(len(labels)), labels])


def z_score(logits: Array) -> Array:
    """Sun et al. 2024, algorithm 1, without its temperature."""
    return (logits - logits.mean(axis=1, keepdims=True)) / logits.std(axis=1, keepdims=True)


def drawn(*shape: int, seed: int, scale: float = 3.0) -> Tensor:
    """Float64 logits."""
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def loss_of(**options: object) -> Loss:
    """The loss that `kdcache train` makes of these options."""
    return Loss(LossSettings.of(TrainOptions(**options)))


def exact_rows(teacher: Tensor) -> Rows:
    """Answers that are these logits."""
    return Rows(teacher, Float32(teacher.shape[1]))


def parts_of(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    progress: float = 1.0,
    mix: Mix | None = None,
    **options: object,
) -> LossTerms:
    """The loss of one batch."""
    rows = exact_rows(teacher)
    return loss_of(**options)(student, rows, labels, progress=progress, mix=mix)


def assert_gradient_is_that_of_finite_differences(
    student: Tensor, value: Callable[[Tensor], Tensor]
) -> None:
    """Compare a scalar's gradient with central differences, in float64."""
    assert torch.autograd.gradcheck(value, student.detach().clone().requires_grad_())


def assert_matches(found: Tensor, expected: float | Array, *, rtol: float = 1e-10) -> None:
    """Compare with float64 numpy; two ways to sum the same numbers differ by a few 2^-52."""
    wanted = torch.as_tensor(np.asarray(expected), dtype=found.dtype)
    torch.testing.assert_close(found.detach(), wanted, rtol=rtol, atol=1e-12)


@st.composite
def batches(
    draw: st.DrawFn, *, min_rows: int = 1, min_classes: int = 2
) -> tuple[Tensor, Tensor, Tensor]:
    """Student and teacher, (B, C) float64 within 8 of 0, and labels."""
    shape = draw(st.tuples(st.integers(min_rows, 5), st.integers(min_classes, 6)))
    logits = hnp.arrays(np.float64, shape, elements=st.floats(-8, 8, width=32))
    labels = hnp.arrays(np.int64, shape[0], elements=st.integers(0, shape[1] - 1))
    student, teacher, wanted = draw(logits), draw(logits), draw(labels)
    return torch.from_numpy(student), torch.from_numpy(teacher), torch.from_numpy(wanted)
