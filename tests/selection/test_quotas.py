"""How many samples each class keeps, against slow references in whole numbers."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.selection.quotas import apportion, class_quotas, kept_total
from tests.selection import reference

several_examples = settings(max_examples=80, deadline=None)
class_sizes = st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any)


@pytest.mark.parametrize(
    ("num_samples", "keep", "expected"),
    [
        (10, 0.25, 3),
        (10, 0.24, 2),
        (10, 0.26, 3),
        (50_000, 0.7, 35_000),
        (1_281_167, 0.7, 896_817),
        (7, 1.0, 7),
        (100, 0.001, 1),
        (1, 0.1, 1),
    ],
)
def test_a_half_is_rounded_up_and_one_sample_is_always_kept(num_samples, keep, expected):
    assert kept_total(num_samples, keep) == expected


@pytest.mark.parametrize(
    ("sizes", "total", "expected"),
    [
        ([10, 10], 5, [3, 2]),
        ([10, 10, 10], 10, [4, 3, 3]),
        ([3, 5, 2], 5, [2, 2, 1]),
        ([1, 0, 9], 5, [1, 0, 4]),
        ([4, 6], 10, [4, 6]),
    ],
    ids=["tie", "three", "remainders", "empty class", "all"],
)
def test_proportional_quotas_give_ties_to_the_smaller_label(sizes, total, expected):
    assert class_quotas(sizes, total, "proportional") == expected


@pytest.mark.parametrize(
    ("sizes", "total", "expected"),
    [
        ([10, 10, 10], 10, [4, 3, 3]),
        ([1, 10, 10], 9, [1, 4, 4]),
        ([1, 5, 5], 5, [1, 2, 2]),
        ([10, 2, 0, 10], 13, [6, 2, 0, 5]),
        ([3, 3], 6, [3, 3]),
    ],
    ids=["extra", "too small", "too small and extra", "empty class", "all"],
)
def test_class_quotas_are_equal_except_for_classes_that_are_too_small(sizes, total, expected):
    assert class_quotas(sizes, total, "class") == expected


@several_examples
@given(sizes=class_sizes, data=st.data())
def test_equal_quotas_match_dealing_one_sample_at_a_time(sizes, data):
    total = data.draw(st.integers(1, sum(sizes)))
    assert class_quotas(sizes, total, "class") == reference.water_filling(sizes, total)


@pytest.mark.parametrize("balance", ["proportional", "class"])
@settings(max_examples=150, deadline=None)
@given(sizes=class_sizes, minimum=st.integers(0, 12), data=st.data())
def test_quotas_with_a_minimum_match_a_slow_reference(balance, sizes, minimum, data):
    least = [min(size, minimum) for size in sizes]
    total = data.draw(st.integers(max(1, sum(least)), sum(sizes)))
    weights = sizes if balance == "proportional" else [min(size, 1) for size in sizes]
    quotas = class_quotas(sizes, total, balance, min_per_class=minimum)
    assert quotas == reference.apportion(total, weights, least, sizes)
    assert sum(quotas) == total
    assert all(low <= quota <= high for low, quota, high in zip(least, quotas, sizes, strict=True))


@settings(max_examples=150, deadline=None)
@given(data=st.data(), classes=st.integers(1, 8))
def test_shares_are_clamped_by_one_factor_for_any_weights_and_bounds(data, classes):
    numbers = st.lists(st.integers(0, 30), min_size=classes, max_size=classes)
    weights, low, more = (data.draw(numbers) for _ in range(3))
    most = [a + b for a, b in zip(low, more, strict=True)]
    can_grow = sum(
        high - least for weight, least, high in zip(weights, low, most, strict=True) if weight
    )
    total = sum(low) + data.draw(st.integers(0, can_grow))
    assert apportion(total, weights, low, most) == reference.apportion(total, weights, low, most)


@pytest.mark.parametrize("balance", ["proportional", "class"])
@several_examples
@given(sizes=class_sizes, data=st.data())
def test_quotas_with_densities_match_a_slow_reference(balance, sizes, data):
    total = data.draw(st.integers(1, sum(sizes)))
    wrong = [data.draw(st.integers(0, size)) for size in sizes]
    densities = [(errors, max(size, 1)) for errors, size in zip(wrong, sizes, strict=True)]
    weights = [
        Fraction(*density) * (size if balance == "proportional" else min(size, 1))
        for density, size in zip(densities, sizes, strict=True)
    ]
    expected = reference.apportion(total, weights, [0] * len(sizes), sizes)
    if sum(expected) < total:  # the classes without errors take the rest
        expected = reference.apportion(total, sizes, expected, sizes)
    quotas = class_quotas(sizes, total, balance, densities=densities)
    assert quotas == expected
    assert sum(quotas) == total


def test_quotas_are_exact_for_numbers_that_a_float_cannot_represent():
    sizes = [10**9 + 7, 3 * 10**9 + 1, 5]
    total = 2 * 10**9 + 3
    assert class_quotas(sizes, total, "class") == [999_999_999, 999_999_999, 5]
    proportional = class_quotas(sizes, total, "proportional")
    assert proportional == reference.apportion(total, sizes, [0] * 3, sizes)
    assert sum(proportional) == total
