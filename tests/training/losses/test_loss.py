"""Cross-entropy and KL: their formula, their limits, and how the parts are put together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from kdcache.errors import ConfigError
from kdcache.training.losses.alpha import Alpha
from kdcache.training.losses.loss import Loss, distillation_loss
from kdcache.training.losses.settings import LossSettings
from tests.training.losses.reference import (
    assert_gradient_is_that_of_finite_differences,
    assert_matches,
    batches,
    cross_entropy,
    drawn,
    exact_rows,
    kl,
    loss_of,
    parts_of,
    softmax,
)

B, C = 6, 5
LABELS = torch.tensor([0, 4, 2, 2, 1, 3])
METHODS = ["kd", "dkd", "dist"]


@pytest.fixture
def student() -> torch.Tensor:
    return drawn(B, C, seed=0)


@pytest.fixture
def teacher() -> torch.Tensor:
    return drawn(B, C, seed=1, scale=4.0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9, 1.0])
def test_the_loss_matches_its_formula(student, teacher, temperature, alpha):
    soft_s, soft_t = (softmax(z.numpy() / temperature) for z in (student, teacher))
    ce, kd = cross_entropy(student.numpy(), LABELS.numpy()), temperature**2 * kl(soft_t, soft_s)
    parts = parts_of(student, teacher, LABELS, temperature=temperature, alpha=alpha)
    assert_matches(parts.cross_entropy, ce.mean())
    assert_matches(parts.distillation, kd.mean())
    assert_matches(parts.per_sample, (1 - alpha) * ce + alpha * kd)
    assert_matches(parts.total, ((1 - alpha) * ce + alpha * kd).mean())
    assert parts.alpha == alpha


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_distillation_loss_matches_torchs_kl_div(student, teacher, temperature):
    expected = functional.kl_div(
        functional.log_softmax(student / temperature, dim=1),
        functional.softmax(teacher / temperature, dim=1),
        reduction="batchmean",
    )
    parts = parts_of(student, teacher, LABELS, temperature=temperature)
    torch.testing.assert_close(
        parts.distillation, temperature**2 * expected, rtol=1e-12, atol=1e-12
    )


def test_distillation_loss_matches_the_class(student, teacher):
    found = distillation_loss(student, teacher, LABELS, temperature=2.0, alpha=0.3)
    assert found.total == parts_of(student, teacher, LABELS, temperature=2.0, alpha=0.3).total
    with pytest.raises(ValueError, match=r"alpha=1\.5"):
        distillation_loss(student, teacher, LABELS, temperature=2.0, alpha=1.5)


@pytest.mark.parametrize("loss", METHODS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_with_alpha_0_the_loss_is_the_cross_entropy(student, teacher, loss, smoothing):
    student.requires_grad_()
    parts = parts_of(student, teacher, LABELS, loss=loss, alpha=0.0, label_smoothing=smoothing)
    parts.total.backward()
    logits = student.detach().clone().requires_grad_()
    alone = loss_of(label_smoothing=smoothing)(logits, None, LABELS, progress=1.0)
    alone.total.backward()
    assert parts.total == parts.cross_entropy == alone.total
    assert torch.equal(student.grad, logits.grad)
    expected = functional.cross_entropy(logits, LABELS, label_smoothing=smoothing)
    torch.testing.assert_close(alone.total, expected, rtol=1e-14, atol=0)  # sums in another order


@pytest.mark.parametrize("loss", ["kd", "dist"])
def test_with_alpha_1_the_labels_are_not_used(student, teacher, loss):
    gradients = []
    for labels in (LABELS, (LABELS + 1) % C):
        logits = student.clone().requires_grad_()
        parts = parts_of(logits, teacher, labels, loss=loss, alpha=1.0)
        parts.total.backward()
        assert parts.total == parts.distillation
        assert not parts.cross_entropy.requires_grad
        gradients.append(logits.grad)
    assert torch.equal(*gradients)


def test_without_grad_mode_the_loss_has_no_graph(student, teacher):
    student.requires_grad_()
    with torch.no_grad():
        for rows in (None, exact_rows(teacher)):
            parts = loss_of()(student, rows, LABELS, progress=0.0)
            assert not parts.total.requires_grad
            assert not parts.per_sample.requires_grad


def test_with_alpha_1_an_infinite_cross_entropy_does_not_reach_the_total():
    student = torch.tensor([[0.0, 0.0, -torch.inf]])
    labels = torch.tensor([2])
    parts = Loss(LossSettings(alpha=Alpha.parse(1)))(
        student, exact_rows(torch.zeros(1, 3)), labels, progress=0.0
    )
    assert parts.cross_entropy == torch.inf
    assert not parts.total.isnan()


def test_with_alpha_0_an_infinite_distillation_does_not_reach_the_total():
    student = torch.tensor([[0.0, 0.0, -torch.inf]], requires_grad=True)
    parts = Loss(LossSettings(alpha=Alpha.parse(0)))(
        student, exact_rows(torch.zeros(1, 3)), torch.tensor([1]), progress=0.0
    )
    assert parts.distillation == torch.inf
    assert parts.total == parts.cross_entropy
    assert torch.equal(parts.per_sample, parts.total[None])
    parts.total.backward()
    assert student.grad.isfinite().all()


def test_a_student_equal_to_its_teacher_has_no_distillation_loss(teacher):
    for loss in METHODS:
        parts = parts_of(teacher + 7, teacher, LABELS, loss=loss)
        torch.testing.assert_close(parts.distillation.item(), 0.0, rtol=0, atol=1e-13)


@settings(max_examples=40, deadline=None)
@given(
    batch=batches(),
    shifts=st.lists(st.integers(-1000, 1000), min_size=10, max_size=10),
    options=st.sampled_from(
        [{}, {"temperature": 0.5}, {"loss": "dkd"}, {"loss": "dist"}, {"standardise": True}]
    ),
)
def test_adding_a_constant_to_a_row_changes_nothing(batch, shifts, options):
    student, teacher, labels = batch
    # Some deviation in each row, so that standardising does not magnify rounding.
    student[:, 0] += 20
    teacher[:, 1] += 20
    moves = torch.tensor(shifts, dtype=torch.float64)[:, None]
    moved = student + moves[: len(student)], teacher + moves[5 : 5 + len(student)]
    before, after = (
        parts_of(student, teacher, labels, **options),
        parts_of(*moved, labels, **options),
    )
    # A logit of 1,000 carries 2^-43 = 1e-13; over T = 0.5, and with weights of 8 T^2 = 128.
    torch.testing.assert_close(after.total, before.total, rtol=1e-10, atol=1e-9)


def test_at_high_temperature_the_gradient_is_the_difference_of_the_centred_logits(student, teacher):
    student.requires_grad_()
    parts_of(student, teacher, LABELS, temperature=1000.0, alpha=1.0).total.backward()
    centred = [z - z.mean(dim=1, keepdim=True) for z in (student.detach(), teacher)]
    # Hinton, Vinyals, Dean 2015, section 2.1; the next term is of order z / T, here about 0.01.
    torch.testing.assert_close(student.grad, (centred[0] - centred[1]) / (C * B), rtol=0, atol=1e-3)


def test_at_high_temperature_the_loss_is_the_squared_distance_of_the_centred_logits(
    student, teacher
):
    parts = parts_of(student, teacher, LABELS, temperature=1e4)
    distance = (student - student.mean(dim=1, keepdim=True)) - (
        teacher - teacher.mean(dim=1, keepdim=True)
    )
    # T^2 KL = |d|^2 / (2 C) + O(z^3 / T), with logits of up to 10.
    expected = (distance**2).sum(dim=1).mean() / (2 * C)
    torch.testing.assert_close(parts.distillation, expected, rtol=5e-3, atol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 0.0},
        {"alpha": 0.9, "temperature": 1.0},
        {"alpha": 1.0},
        {"label_smoothing": 0.2, "alpha": 0.5},
        {"loss": "dkd(alpha=2, beta=3)"},
        {"loss": "dkd(alpha=0, beta=1)", "alpha": 1.0, "temperature": 1.0},
        {"loss": "dist(beta=2, gamma=3)"},
        {"loss": "dist(beta=0, gamma=1)", "alpha": 1.0, "temperature": 1.0},
        {"standardise": True},
        {"standardise": True, "loss": "dkd", "alpha": 1.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("classes", [2, 5])
def test_the_gradient_matches_finite_differences(options, classes):
    student, teacher = drawn(B, classes, seed=0), drawn(B, classes, seed=1)
    labels = LABELS % classes

    def total(logits: torch.Tensor) -> torch.Tensor:
        return parts_of(logits, teacher, labels, **options).total

    assert_gradient_is_that_of_finite_differences(student, total)


@pytest.mark.parametrize("options", [{}, {"loss": "dkd"}, {"standardise": True}], ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_mean_over_the_batch(student, teacher, options, smoothing):
    options = options | {"alpha": 0.7, "label_smoothing": smoothing}
    per_sample = [
        parts_of(student[i : i + 1], teacher[i : i + 1], LABELS[i : i + 1], **options)
        for i in range(B)
    ]
    parts = parts_of(student, teacher, LABELS, **options)
    for name in ("total", "cross_entropy", "distillation"):
        expected = torch.stack([getattr(one, name) for one in per_sample]).mean()
        torch.testing.assert_close(getattr(parts, name), expected, rtol=1e-12, atol=1e-12)
    expected = torch.stack([one.total for one in per_sample])
    torch.testing.assert_close(parts.per_sample, expected, rtol=1e-12, atol=1e-12)


def test_the_loss_per_sample_can_be_weighted(student, teacher):
    """As pruning during training does: the gradient of the others is not touched."""
    student.requires_grad_()
    parts = parts_of(student, teacher, LABELS)
    (parts.per_sample * torch.tensor([0.0, 2.0, 0.0, 0.0, 0.0, 0.0])).sum().backward()
    assert (student.grad[1] != 0).all()
    assert (student.grad[[0, 2, 3, 4, 5]] == 0).all()


@pytest.mark.parametrize("loss", METHODS)
def test_with_one_class_the_gradient_is_0(loss):
    student = torch.randn(3, 1, requires_grad=True)
    labels = torch.zeros(3, dtype=torch.int64)
    parts = parts_of(student, torch.randn(3, 1), labels, loss=loss)
    parts.total.backward()
    assert torch.equal(student.grad, torch.zeros(3, 1))
    assert parts.cross_entropy == 0
    assert parts.total.isfinite()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_converted_to_float32(dtype):
    student = drawn(B, C, seed=0).to(dtype).requires_grad_()
    parts = parts_of(student, drawn(B, C, seed=1).float(), LABELS)
    wide = parts_of(student.detach().float(), drawn(B, C, seed=1).float(), LABELS)
    assert parts.total.dtype == torch.float32
    assert torch.equal(parts.total, wide.total)
    parts.total.backward()
    assert student.grad.dtype == dtype


def test_float64_logits_stay_float64(student, teacher):
    assert parts_of(student, teacher.float(), LABELS).total.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_teachers_logits_are_converted_to_the_students_dtype(student, teacher, dtype):
    given = teacher.to(dtype)
    parts = parts_of(student.float(), given, LABELS)
    assert parts.total.dtype == torch.float32
    assert torch.equal(
        parts.per_sample, parts_of(student.float(), given.float(), LABELS).per_sample
    )


@pytest.mark.parametrize("options", [{}, {"loss": "dkd"}, {"loss": "dist"}, {"standardise": True}])
def test_large_float32_logits_give_a_finite_loss(options):
    student = torch.tensor([[1e4, 0.0, -1e4], [0.0, 0.0, 1e4]], requires_grad=True)
    teacher = torch.tensor([[-1e4, 0.0, 1e4], [0.0, 1e4, 0.0]])
    parts = parts_of(student, teacher, torch.tensor([0, 1]), temperature=1.0, **options)
    parts.total.backward()
    assert parts.total.isfinite()
    assert student.grad.isfinite().all()


def test_without_rows_the_loss_is_the_cross_entropy_of_the_labels(student):
    parts = loss_of(label_smoothing=0.1)(student, None, LABELS, progress=0.5)
    expected = functional.cross_entropy(student, LABELS, label_smoothing=0.1)
    assert parts.total == parts.cross_entropy
    torch.testing.assert_close(parts.total, expected, rtol=1e-14, atol=0)
    assert (parts.distillation, parts.alpha) == (None, None)
    torch.testing.assert_close(parts.per_sample.mean(), expected, rtol=1e-12, atol=0)


def test_label_smoothing_matches_torchs(student, teacher):
    parts = parts_of(student, teacher, LABELS, alpha=0.25, label_smoothing=0.3)
    soft = 0.7 * np.eye(C)[LABELS.numpy()] + 0.3 / C
    expected = -(soft * np.log(softmax(student.numpy()))).sum(axis=1).mean()
    assert_matches(parts.cross_entropy, expected)
    torch.testing.assert_close(
        parts.total, 0.75 * parts.cross_entropy + 0.25 * parts.distillation, rtol=1e-12, atol=0
    )


@pytest.mark.parametrize(("progress", "alpha"), [(0.0, 0.8), (0.25, 0.65), (1.0, 0.2)])
def test_alpha_follows_its_schedule(student, teacher, progress, alpha):
    parts = parts_of(student, teacher, LABELS, alpha="linear(0.8, 0.2)", progress=progress)
    assert parts.alpha == pytest.approx(alpha, abs=1e-12)
    expected = (1 - alpha) * parts.cross_entropy + alpha * parts.distillation
    torch.testing.assert_close(parts.total, expected, rtol=1e-12, atol=0)


def test_backward_works_if_every_term_has_weight_0(student, teacher):
    """alpha 1, and a method that has no weight yet: no part has any, and backward still runs."""
    student.requires_grad_()
    parts = parts_of(student, teacher, LABELS, loss="dkd", alpha=1.0, progress=0.0)
    parts.total.backward()
    assert torch.equal(student.grad, torch.zeros(B, C, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(1, C), (B, 1), (C,)])
def test_logits_of_another_shape_are_not_broadcast(student, shape):
    with pytest.raises(ConfigError, match=r"^teacher_BC=.*: expected the shape of student_BC"):
        distillation_loss(student, torch.zeros(shape), LABELS, temperature=2.0, alpha=0.3)
