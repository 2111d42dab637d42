"""MDSLR's reshaping against its formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdcache.training.losses.loss import Loss
from kdcache.training.losses.reshape import reshape_logits
from kdcache.training.losses.settings import LossSettings
from tests.training.losses.reference import assert_matches, drawn, exact_rows, kl, softmax

LABELS = torch.tensor([0, 4, 2, 2, 1, 3])
CONSTANTS = torch.tensor([2.0, 0.5, 3.0, 1.0, 7.0], dtype=torch.float64)


def by_definition(rows: np.ndarray) -> np.ndarray:
    return rows / rows.std(axis=1, ddof=1, keepdims=True) * CONSTANTS.numpy()[LABELS, None]


def test_reshaped_logits_match_the_formula():
    teacher = drawn(6, 5, seed=1)
    found = reshape_logits(teacher, LABELS, CONSTANTS)
    expected = torch.from_numpy(by_definition(teacher.numpy()))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_a_loss_reshapes_the_teacher_before_the_temperature_and_leaves_the_student():
    student, teacher = drawn(6, 5, seed=0), drawn(6, 5, seed=1)
    loss = Loss(LossSettings(reshape=True, temperature=3.0), CONSTANTS)
    parts = loss(student, exact_rows(teacher), LABELS, progress=0.0)
    p_t, p_s = softmax(by_definition(teacher.numpy()) / 3), softmax(student.numpy() / 3)
    assert_matches(parts.distillation, 9 * kl(p_t, p_s).mean())


def test_a_constant_in_a_row_changes_no_probability_of_reshaped_logits():
    teacher = drawn(6, 5, seed=1)
    moved = reshape_logits(teacher + 13.0, LABELS, CONSTANTS).softmax(dim=1)
    expected = reshape_logits(teacher, LABELS, CONSTANTS).softmax(dim=1)
    torch.testing.assert_close(moved, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("classes", [1, 4])
def test_a_row_of_equal_logits_is_unchanged(classes):
    rows = torch.full((2, classes), 3.0)
    labels = torch.zeros(2, dtype=torch.int64)
    assert torch.equal(reshape_logits(rows, labels, torch.full((classes,), 2.0)), rows)
