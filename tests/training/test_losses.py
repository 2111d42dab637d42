"""The distillation loss against numpy in float64, F.kl_div, and its limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from kdcache.training.losses import distillation_loss, label_loss, reshape_logits

B, C = 6, 5
LABELS = torch.tensor([0, 4, 2, 2, 1, 3])


@pytest.fixture
def student() -> torch.Tensor:
    return torch.randn(B, C, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3


@pytest.fixture
def teacher() -> torch.Tensor:
    return torch.randn(B, C, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 4


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def by_definition(student, teacher, labels, temperature, alpha) -> tuple[float, float, float]:
    """(total, cross-entropy, T^2 KL), with numpy and sums over probabilities."""
    soft_s, soft_t = softmax(student / temperature), softmax(teacher / temperature)
    distillation = temperature**2 * (soft_t * np.log(soft_t / soft_s)).sum(axis=1).mean()
    cross_entropy = -np.log(softmax(student)[np.arange(len(labels)), labels]).mean()
    return (1 - alpha) * cross_entropy + alpha * distillation, cross_entropy, distillation


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9, 1.0])
def test_the_loss_is_what_its_formula_says(student, teacher, temperature, alpha):
    parts = distillation_loss(student, teacher, LABELS, temperature=temperature, alpha=alpha)
    expected = by_definition(student.numpy(), teacher.numpy(), LABELS.numpy(), temperature, alpha)
    for found, wanted in zip(parts, expected, strict=True):
        torch.testing.assert_close(found.item(), float(wanted), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_distillation_term_is_torchs_kl_div(student, teacher, temperature):
    parts = distillation_loss(student, teacher, LABELS, temperature=temperature, alpha=0.5)
    expected = functional.kl_div(
        functional.log_softmax(student / temperature, dim=1),
        functional.softmax(teacher / temperature, dim=1),
        reduction="batchmean",
    )
    torch.testing.assert_close(
        parts.distillation, temperature**2 * expected, rtol=1e-12, atol=1e-12
    )


def test_with_alpha_0_the_loss_is_the_cross_entropy(student, teacher):
    parts = distillation_loss(student, teacher, LABELS, temperature=4.0, alpha=0.0)
    torch.testing.assert_close(
        parts.total, functional.cross_entropy(student, LABELS), rtol=0, atol=0
    )


def test_with_alpha_1_the_labels_do_not_count(student, teacher):
    parts = distillation_loss(student, teacher, LABELS, temperature=4.0, alpha=1.0)
    others = distillation_loss(student, teacher, (LABELS + 1) % C, temperature=4.0, alpha=1.0)
    assert parts.total == others.total == parts.distillation


def test_a_student_that_answers_as_its_teacher_has_no_distillation_loss(teacher):
    parts = distillation_loss(teacher + 7, teacher, LABELS, temperature=4.0, alpha=0.9)
    torch.testing.assert_close(parts.distillation.item(), 0.0, rtol=0, atol=1e-14)


@settings(max_examples=50, deadline=None)
@given(
    shift=st.lists(st.integers(-1000, 1000), min_size=B, max_size=B),
    temperature=st.sampled_from([0.5, 1.0, 4.0]),
)
def test_a_constant_in_a_row_of_the_teacher_changes_nothing(shift, temperature):
    generator = torch.Generator().manual_seed(2)
    student, teacher = torch.randn(2, B, C, generator=generator, dtype=torch.float64)
    shifted = teacher + torch.tensor(shift, dtype=torch.float64)[:, None]
    for before, after in zip(
        distillation_loss(student, teacher, LABELS, temperature=temperature, alpha=0.9),
        distillation_loss(student, shifted, LABELS, temperature=temperature, alpha=0.9),
        strict=True,
    ):
        # A logit of up to 2,000 over T carries 2^-41; squared temperature and sums add little.
        torch.testing.assert_close(after, before, rtol=0, atol=1e-10)


def test_at_high_temperature_the_gradient_is_the_difference_of_the_centred_logits(student, teacher):
    student.requires_grad_()
    distillation_loss(student, teacher, LABELS, temperature=1000.0, alpha=1.0).total.backward()
    centred = [z - z.mean(dim=1, keepdim=True) for z in (student.detach(), teacher)]
    # Hinton, Vinyals, Dean 2015, section 2.1; the next term is of order z / T, here about 0.01.
    torch.testing.assert_close(student.grad, (centred[0] - centred[1]) / (C * B), rtol=0, atol=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("alpha", [0.0, 0.9, 1.0])
def test_the_gradient_is_that_of_finite_differences(student, teacher, temperature, alpha):
    def loss(logits: torch.Tensor) -> torch.Tensor:
        return distillation_loss(
            logits, teacher, LABELS, temperature=temperature, alpha=alpha
        ).total

    assert torch.autograd.gradcheck(loss, student.requires_grad_())


def test_the_loss_is_a_mean_over_the_batch(student, teacher):
    of_each = [
        distillation_loss(
            student[i : i + 1], teacher[i : i + 1], LABELS[i : i + 1], temperature=4.0, alpha=0.9
        )
        for i in range(B)
    ]
    parts = distillation_loss(student, teacher, LABELS, temperature=4.0, alpha=0.9)
    for found, each in zip(parts, zip(*of_each, strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(each).mean(), rtol=1e-12, atol=1e-12)


def test_large_float32_logits_give_a_finite_loss():
    student = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    teacher = torch.tensor([[-1e4, 0.0, 1e4]])
    parts = distillation_loss(student, teacher, torch.tensor([0]), temperature=1.0, alpha=0.9)
    parts.total.backward()
    assert torch.isfinite(parts.total)
    assert torch.isfinite(student.grad).all()


def test_the_label_loss_is_the_cross_entropy_without_a_distillation_term(student):
    parts = label_loss(student, LABELS)
    assert parts.total == parts.cross_entropy == functional.cross_entropy(student, LABELS)
    assert parts.distillation is None


def test_reshaped_logits_are_those_of_the_formula(teacher):
    constants = torch.tensor([2.0, 0.5, 3.0, 1.0, 7.0], dtype=torch.float64)
    rows = teacher.numpy()
    expected = rows / rows.std(axis=1, ddof=1, keepdims=True) * constants.numpy()[LABELS, None]
    found = reshape_logits(teacher, LABELS, constants)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-12, atol=0)


def test_a_constant_in_a_row_changes_no_probability_of_reshaped_logits(teacher):
    constants = torch.arange(1.0, 6.0, dtype=torch.float64)
    moved = reshape_logits(teacher + 13.0, LABELS, constants).softmax(dim=1)
    expected = reshape_logits(teacher, LABELS, constants).softmax(dim=1)
    torch.testing.assert_close(moved, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("classes", [1, 4])
def test_a_row_of_equal_logits_stays(classes):
    rows = torch.full((2, classes), 3.0)
    labels = torch.zeros(2, dtype=torch.int64)
    assert torch.equal(reshape_logits(rows, labels, torch.full((classes,), 2.0)), rows)
