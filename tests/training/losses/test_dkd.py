"""DKD against equation 7 of the paper, and against the divergence that it takes apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from kdcache.training.losses.dkd import Dkd
from tests.training.losses.reference import (
    Array,
    assert_gradient_is_that_of_finite_differences,
    assert_matches,
    batches,
    drawn,
    kl,
    parts_of,
    softmax,
)


def by_definition(
    student: Array, teacher: Array, labels: Array, *, temperature: float, alpha: float, beta: float
) -> Array:
    """Zhao et al. 2022, equation 7, of each row, with probabilities of the label and the others."""
    losses = []
    for s, t, label in zip(student / temperature, teacher / temperature, labels, strict=True):
        p_s, p_t = softmax(s[None])[0], softmax(t[None])[0]
        binary_s = np.array([p_s[label], np.delete(p_s, label).sum()])
        binary_t = np.array([p_t[label], np.delete(p_t, label).sum()])
        others_s = softmax(np.delete(s, label)[None])
        others_t = softmax(np.delete(t, label)[None])
        target = kl(binary_t[None], binary_s[None])[0]
        losses.append(alpha * target + beta * kl(others_t, others_s)[0])
    return temperature**2 * np.array(losses)


@settings(max_examples=60, deadline=None)
@given(batch=batches())
@pytest.mark.parametrize(
    ("temperature", "alpha", "beta"),
    [(1.0, 1.0, 8.0), (4.0, 0.5, 2.0), (2.0, 0.0, 3.0), (0.5, 2, 0)],
)
def test_the_loss_matches_the_papers_formula(batch, temperature, alpha, beta):
    parts = parts_of(*batch, loss=f"dkd({alpha}, {beta}, warm_up=0)", temperature=temperature)
    expected = by_definition(
        *(tensor.numpy() for tensor in batch), temperature=temperature, alpha=alpha, beta=beta
    )
    assert_matches(parts.distillation, expected.mean(), rtol=1e-9)


@settings(max_examples=40, deadline=None)
@given(batch=batches())
def test_kl_is_tckd_plus_nckd_times_1_minus_p(batch):
    student, teacher, labels = batch
    rows = torch.arange(len(labels))
    for i in rows:
        one = student[i : i + 1], teacher[i : i + 1], labels[i : i + 1]
        rest = 1 - softmax(teacher[i : i + 1].numpy() / 4.0)[0, labels[i]]
        if rest < 1e-9:
            continue  # no weight that dkd's text would carry
        found = parts_of(*one, loss=f"dkd(1, {rest:.17g}, 0)").distillation
        expected = parts_of(*one).distillation
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_with_two_classes_nckd_is_0():
    student, teacher = drawn(4, 2, seed=0), drawn(4, 2, seed=1)
    labels = torch.tensor([0, 1, 1, 0])
    found = parts_of(student, teacher, labels, loss="dkd(alpha=1, beta=8)")
    torch.testing.assert_close(
        found.distillation, parts_of(student, teacher, labels).distillation, rtol=1e-12, atol=1e-13
    )


def test_nckd_is_accurate_for_a_confident_teacher():
    """In float32, where 1 - p of its label would be 0."""
    teacher = torch.tensor([[60.0, 2.0, 0.0]])
    student = torch.zeros(1, 3, requires_grad=True)
    parts = parts_of(
        student, teacher, torch.tensor([0]), loss="dkd(0, 1, 0)", temperature=1.0, alpha=1.0
    )
    others = softmax(np.array([[2.0, 0.0]]))
    assert_matches(parts.distillation, kl(others, np.array([[0.5, 0.5]]))[0], rtol=1e-5)
    parts.total.backward()
    assert_matches(student.grad[0, 1:], 0.5 - others[0], rtol=1e-5)
    assert abs(student.grad[0, 0]) < 1e-7  # what the softmax of three float32 leaves


def test_the_loss_depends_on_the_label():
    student, teacher = drawn(3, 4, seed=0), drawn(3, 4, seed=1)
    first = parts_of(student, teacher, torch.tensor([0, 1, 2]), loss="dkd")
    second = parts_of(student, teacher, torch.tensor([1, 1, 2]), loss="dkd")
    differ = first.per_sample != second.per_sample
    assert differ.tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("progress", "share"), [(0.0, 0.0), (0.1, 0.5), (0.2, 1.0), (0.7, 1.0), (1.0, 1.0)]
)
def test_the_weight_grows_over_the_warm_up(progress, share):
    student, teacher = drawn(3, 4, seed=0), drawn(3, 4, seed=1)
    labels = torch.tensor([0, 1, 2])
    parts = parts_of(
        student, teacher, labels, loss="dkd(warm_up=0.2)", alpha=0.4, progress=progress
    )
    expected = 0.6 * parts.cross_entropy + 0.4 * share * parts.distillation
    torch.testing.assert_close(parts.total, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(parts.per_sample.mean(), expected, rtol=1e-12, atol=0)
    assert parts.alpha == 0.4


def test_without_a_warm_up_the_weight_is_full_from_the_start():
    assert Dkd(warm_up=0).ramp(0.0) == 1.0
    assert Dkd(warm_up=1).ramp(0.25) == 0.25


@pytest.mark.parametrize("label", [0, 2])
def test_the_gradient_matches_finite_differences_for_a_confident_teacher(label):
    teacher = torch.tensor([[30.0, 1.0, -2.0]], dtype=torch.float64)
    student = drawn(1, 3, seed=3)

    def total(logits: torch.Tensor) -> torch.Tensor:
        return parts_of(logits, teacher, torch.tensor([label]), loss="dkd", temperature=1.0).total

    assert_gradient_is_that_of_finite_differences(student, total)
