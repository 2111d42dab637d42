"""DIST against the correlations of numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.training.losses.reference import Array, assert_matches, drawn, parts_of, softmax

LABELS = torch.tensor([0, 4, 2, 2, 1, 3])


def correlations(first: Array, second: Array) -> Array:
    """Pearson's r of each row."""
    return np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(first, second, strict=True)])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("beta", "gamma"), [(1.0, 0.0), (0.0, 1.0), (2.0, 3.0)])
def test_the_loss_matches_the_papers_formula(temperature, beta, gamma):
    student, teacher = drawn(6, 5, seed=0), drawn(6, 5, seed=1)
    p_s, p_t = softmax(student.numpy() / temperature), softmax(teacher.numpy() / temperature)
    # Huang et al. 2022, equations 8 and 9: over the classes of a sample, the samples of a class.
    inter = (1 - correlations(p_s, p_t)).mean()
    intra = (1 - correlations(p_s.T, p_t.T)).mean()
    parts = parts_of(
        student, teacher, LABELS, loss=f"dist({beta}, {gamma})", temperature=temperature
    )
    assert_matches(parts.distillation, beta * inter + gamma * intra)


def test_there_is_no_loss_per_sample():
    parts = parts_of(drawn(6, 5, seed=0), drawn(6, 5, seed=1), LABELS, loss="dist")
    assert parts.per_sample is None
    expected = 0.5 * parts.cross_entropy + 0.5 * parts.distillation
    torch.testing.assert_close(parts.total, expected, rtol=1e-12, atol=0)


def test_constant_probabilities_have_correlation_0_and_no_gradient():
    """One sample: no class varies over the batch. A teacher that tells no classes apart."""
    student = drawn(1, 4, seed=0).requires_grad_()
    within = parts_of(student, drawn(1, 4, seed=1), LABELS[:1], loss="dist(0, 1)", alpha=1.0)
    within.total.backward()
    assert within.distillation == 1
    assert torch.equal(student.grad, torch.zeros_like(student))
    student = drawn(2, 4, seed=0).requires_grad_()
    between = parts_of(
        student, torch.zeros(2, 4), torch.tensor([0, 1]), loss="dist(1, 0)", alpha=1.0
    )
    between.total.backward()
    assert between.distillation == 1
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_opposite_probabilities_have_the_largest_loss():
    teacher = torch.tensor([[3.0, 0.0], [-1.0, 1.0], [0.0, 0.5]], dtype=torch.float64)
    parts = parts_of(-teacher, teacher, torch.tensor([0, 1, 1]), loss="dist(1, 1)")
    torch.testing.assert_close(parts.distillation.item(), 4.0, rtol=0, atol=1e-12)


def test_float32_is_accurate_with_many_classes():
    """Of 21,841 classes most probabilities are near 1e-8; their squares near float32's end."""
    student, teacher = drawn(4, 21_841, seed=0, scale=4.0), drawn(4, 21_841, seed=1, scale=4.0)
    labels = torch.tensor([0, 1, 2, 3])
    exact = parts_of(student, teacher, labels, loss="dist", temperature=1.0)
    found = parts_of(student.float(), teacher.float(), labels, loss="dist", temperature=1.0)
    # Each correlation is a sum of float32 products; their mean loses little.
    torch.testing.assert_close(found.distillation.double(), exact.distillation, rtol=1e-5, atol=0)


def test_float32_is_accurate_for_tiny_probabilities():
    """Probabilities near 1e-26, whose squares would be 0."""
    logits = torch.tensor([[0.0, 1.0, -60.0], [0.5, 0.0, -59.0], [0.0, 2.0, -61.0]])
    teacher, student = logits.double(), torch.flip(logits, dims=[0]).double()
    labels = torch.tensor([0, 0, 1])
    p_s, p_t = softmax(student.numpy()), softmax(teacher.numpy())
    expected = (1 - correlations(p_s.T, p_t.T)).mean()
    found = parts_of(student.float(), teacher.float(), labels, loss="dist(0, 1)", temperature=1.0)
    # Softmax of float32 logits near 60 has errors of 4e-6, which the three deviations keep.
    assert_matches(found.distillation.double(), expected, rtol=1e-4)
