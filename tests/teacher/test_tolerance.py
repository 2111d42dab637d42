"""The one measure of how far two answers of a teacher are apart."""

from __future__ import annotations

import numpy as np
import pytest

from kdcache.teacher.tolerance import TOLERANCES, relative_differences

ROW = np.array([[1.0, 2.0, 5.0]], dtype=np.float32)


def test_the_largest_difference_is_a_share_of_the_expected_range():
    found = np.array([[1.0, 2.0, 5.6]], dtype=np.float32)
    # Centred: 0.6 less the mean difference of 0.2, of a range of 4.
    assert relative_differences(found, ROW) == pytest.approx([0.4 / 4])
    assert relative_differences(ROW, found) == pytest.approx([0.4 / 4.6])


def test_a_constant_counts_as_nothing():
    assert relative_differences(ROW + 100, ROW) == pytest.approx([0.0], abs=1e-12)


def test_each_row_is_measured_alone():
    expected = np.array([[0.0, 1.0], [0.0, 1000.0], [3.0, 3.0], [3.0, 3.0]])
    found = np.array([[0.0, 1.0], [0.0, 1001.0], [3.0, 3.0], [3.0, 4.0]])
    assert relative_differences(found, expected).tolist() == pytest.approx(
        [0, 0.5 / 1000, 0, np.inf]
    )


def test_a_precision_with_fewer_bits_has_a_wider_bound():
    mantissa_bits = {"fp32": 23, "tf32": 10, "fp16": 10, "bf16": 7}
    assert TOLERANCES.keys() == mantissa_bits.keys()
    assert TOLERANCES["fp32"] < TOLERANCES["tf32"] <= TOLERANCES["fp16"] < TOLERANCES["bf16"]
    for precision, bits in mantissa_bits.items():
        assert 8 < TOLERANCES[precision] * 2**bits < 1024  # units in the last place
