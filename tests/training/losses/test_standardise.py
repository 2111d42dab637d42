"""Logit standardisation against algorithm 1 of its paper."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.training.losses.standardise import standardise
from tests.training.losses.reference import (
    assert_gradient_is_that_of_finite_differences,
    assert_matches,
    cross_entropy,
    drawn,
    kl,
    parts_of,
    softmax,
    z_score,
)

LABELS = torch.tensor([0, 4, 2, 2, 1, 3])


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_the_loss_matches_the_papers_formula(temperature):
    student, teacher = drawn(6, 5, seed=0), drawn(6, 5, seed=1, scale=9.0)
    p_s = softmax(z_score(student.numpy()) / temperature)
    p_t = softmax(z_score(teacher.numpy()) / temperature)
    parts = parts_of(student, teacher, LABELS, standardise=True, temperature=temperature)
    assert_matches(parts.distillation, temperature**2 * kl(p_t, p_s).mean())
    # The labels are compared with the logits as they are.
    assert_matches(parts.cross_entropy, cross_entropy(student.numpy(), LABELS.numpy()).mean())


@settings(max_examples=30, deadline=None)
@given(size=st.floats(0.01, 100), shift=st.floats(-50, 50))
def test_the_loss_does_not_depend_on_the_scale_of_the_students_logits(size, shift):
    student, teacher = drawn(6, 5, seed=0), drawn(6, 5, seed=1)
    found = parts_of(size * student + shift, teacher, LABELS, standardise=True)
    expected = parts_of(student, teacher, LABELS, standardise=True)
    torch.testing.assert_close(found.distillation, expected.distillation, rtol=1e-9, atol=1e-11)


def test_a_row_has_mean_0_and_standard_deviation_1_with_divisor_c():
    found = standardise(drawn(6, 5, seed=0)).numpy()
    np.testing.assert_allclose(found.mean(axis=1), 0, atol=1e-15)
    np.testing.assert_allclose((found**2).mean(axis=1), 1, rtol=1e-14)


@pytest.mark.parametrize("classes", [1, 4])
def test_a_row_of_equal_logits_becomes_0_and_has_a_finite_gradient(classes):
    rows = torch.full((2, classes), 3.0, requires_grad=True)
    found = standardise(rows)
    assert torch.equal(found, torch.zeros(2, classes))
    found[:, 0].sum().backward()
    assert rows.grad.isfinite().all()


def test_the_gradient_matches_finite_differences():
    weights = drawn(6, 5, seed=2)

    def total(logits: torch.Tensor) -> torch.Tensor:
        return (weights * standardise(logits)).sum()

    assert_gradient_is_that_of_finite_differences(drawn(6, 5, seed=0), total)
