"""Accuracy, likelihood and calibration, against sums written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.compute.quality import QualityMeter


def reference(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float, float, float]:
    """Return what the formulas say, sample by sample."""
    hits_1 = hits_5 = nll = 0.0
    bins: dict[int, list[tuple[float, float]]] = {}
    for row, label in zip(logits.astype(np.float64), labels, strict=True):
        probs = np.exp(row - row.max())
        probs /= probs.sum()
        order = np.argsort(-row, kind="stable")
        hits_1 += order[0] == label
        hits_5 += label in order[:5]
        nll -= math.log(probs[label])
        (number,) = [b for b in range(15) if b / 15 < probs.max() <= (b + 1) / 15]
        bins.setdefault(number, []).append((probs.max(), float(order[0] == label)))
    ece = sum(
        abs(sum(hit for _, hit in found) - sum(sure for sure, _ in found))
        for found in bins.values()
    )
    count = len(labels)
    return 100 * hits_1 / count, 100 * hits_5 / count, nll / count, ece / count


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), classes=st.sampled_from([2, 3, 10]), cut=st.integers(1, 39))
def test_quality_is_that_of_the_formulas_however_the_batches_are_cut(seed, classes, cut):
    rng = np.random.default_rng(seed)
    logits = (4 * rng.standard_normal((40, classes))).astype(np.float32)
    labels = rng.integers(0, classes, 40)
    meter = QualityMeter()
    for part in (slice(None, cut), slice(cut, None)):
        meter.add(torch.from_numpy(logits[part]), torch.from_numpy(labels[part]))
    # float64 sums of 40 numbers in another order.
    assert meter.result() == pytest.approx(reference(logits, labels), abs=1e-9)


def test_a_sure_and_wrong_teacher_has_the_largest_calibration_error():
    meter = QualityMeter()
    meter.add(torch.tensor([[50.0, 0.0]] * 4), torch.tensor([1, 1, 1, 1]))
    assert meter.result() == pytest.approx((0, 100, 50, 1))
