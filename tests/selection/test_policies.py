"""Policies and quotas against slow references, one sample at a time."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from kdcache.errors import ConfigError
from kdcache.selection.policies import (
    POLICIES,
    class_quotas,
    easy,
    hard,
    kept_total,
    medium,
    random,
    select_ids,
)

several_examples = settings(max_examples=80, deadline=None)
BALANCES = ["proportional", "class", "none"]


@st.composite
def data_sets(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Draw scores with and without ties, labels with small and empty classes, and C."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    classes = draw(st.integers(1, 5))
    count = draw(st.integers(1, 60))
    shares = rng.dirichlet(np.full(classes, 0.7))
    labels = rng.choice(classes, size=count, p=shares).astype(np.int64)
    scores = rng.normal(size=count).astype(np.float32)
    if draw(st.booleans()):
        scores = np.round(scores)
    return scores, labels, classes


keeps = st.floats(0.001, 1.0)


def kept(
    scores: np.ndarray,
    labels: np.ndarray,
    classes: int,
    method: str = "medium",
    *,
    keep: float = 0.5,
    balance: str = "proportional",
    seed: int = 0,
) -> np.ndarray:
    return select_ids(
        scores,
        labels,
        method=method,
        keep=keep,
        balance=balance,
        seed=seed,
        num_classes=classes,
    )


def ranked(scores: np.ndarray, sample_ids: list[int]) -> list[int]:
    """Easiest first, ties to the smaller id."""
    return sorted(sample_ids, key=lambda sample_id: (scores[sample_id], sample_id))


def water_filling(sizes: list[int], total: int) -> list[int]:
    """Deal one sample after the other to the class that has fewest, if it has one left."""
    quotas = [0] * len(sizes)
    for _ in range(total):
        places = [place for place, size in enumerate(sizes) if quotas[place] < size]
        quotas[min(places, key=lambda place: (quotas[place], place))] += 1
    return quotas


def largest_remainder(sizes: list[int], total: int) -> list[int]:
    shares = [Fraction(total * size, sum(sizes)) for size in sizes]
    quotas = [int(share) for share in shares]
    by_remainder = sorted(
        range(len(sizes)), key=lambda place: (quotas[place] - shares[place], place)
    )
    for place in by_remainder[: total - sum(quotas)]:
        quotas[place] += 1
    return quotas


def mdslr(order: list[int], num: int) -> list[int]:
    """Keep the window of MDSLR's published code: above the middle first, then below it."""
    if num >= len(order):
        return order
    middle = len(order) // 2
    above = order[middle : middle + num // 2]
    below = order[middle - (num - num // 2) : middle]
    return above + below


WINDOWS: dict[str, Callable[[list[int], int], list[int]]] = {
    "easy": lambda order, num: order[:num],
    "hard": lambda order, num: order[len(order) - num :],
    "medium": mdslr,
}


@pytest.mark.parametrize("method", WINDOWS)
@pytest.mark.parametrize("balance", BALANCES)
@several_examples
@given(data=data_sets(), keep=keeps)
def test_the_kept_ids_are_those_of_a_slow_reference(method, balance, data, keep):
    scores, labels, classes = data
    groups = [[i for i in range(len(labels)) if labels[i] == label] for label in range(classes)]
    total = kept_total(len(scores), keep)
    sizes = [len(group) for group in groups]
    if balance == "none":
        groups, quotas = [list(range(len(scores)))], [total]
    elif balance == "class":
        quotas = water_filling(sizes, total)
    else:
        quotas = largest_remainder(sizes, total)
    expected = [
        sample_id
        for group, quota in zip(groups, quotas, strict=True)
        for sample_id in WINDOWS[method](ranked(scores, group), quota)
    ]
    actual = kept(scores, labels, classes, method, keep=keep, balance=balance)
    assert actual.tolist() == sorted(expected)


@pytest.mark.parametrize("method", POLICIES)
@pytest.mark.parametrize("balance", BALANCES)
@several_examples
@given(data=data_sets(), keep=keeps)
def test_a_selection_is_sorted_unique_and_of_the_requested_number(method, balance, data, keep):
    scores, labels, classes = data
    ids = kept(scores, labels, classes, method, keep=keep, balance=balance)
    assert ids.dtype == np.int64
    assert (np.diff(ids) > 0).all()
    assert ids[0] >= 0
    assert ids[-1] < len(scores)
    assert len(ids) == max(1, int(np.floor(keep * len(scores) + 0.5)))


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
    assert class_quotas(np.array(sizes), total, "proportional").tolist() == expected


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
def test_class_quotas_are_equal_but_for_classes_that_are_too_small(sizes, total, expected):
    assert class_quotas(np.array(sizes), total, "class").tolist() == expected


@pytest.mark.parametrize("balance", ["proportional", "class"])
@several_examples
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any), data=st.data())
def test_quotas_are_those_of_a_slow_reference(balance, sizes, data):
    total = data.draw(st.integers(1, sum(sizes)))
    reference = water_filling if balance == "class" else largest_remainder
    quotas = class_quotas(np.array(sizes), total, balance)
    assert quotas.tolist() == reference(sizes, total)
    assert quotas.sum() == total
    assert (quotas <= sizes).all()


@pytest.mark.parametrize("balance", ["proportional", "class"])
def test_quotas_are_exact_beyond_the_integers_of_a_float(balance):
    sizes = [10**9 + 7, 3 * 10**9 + 1, 5]
    total = 2 * 10**9 + 3
    quotas = class_quotas(np.array(sizes), total, balance).tolist()
    assert sum(quotas) == total
    if balance == "proportional":
        assert quotas == largest_remainder(sizes, total)
    else:
        assert quotas == [999_999_999, 999_999_999, 5]


def test_the_window_of_medium_is_centred_and_one_longer_below():
    order = np.arange(10)
    assert medium(order, 4, 0, 0).tolist() == [3, 4, 5, 6]
    assert medium(order, 5, 0, 0).tolist() == [2, 3, 4, 5, 6]
    assert medium(order, 9, 0, 0).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert medium(np.arange(11), 3, 0, 0).tolist() == [3, 4, 5]


@several_examples
@given(size=st.integers(1, 60), data=st.data())
def test_medium_is_the_window_of_mdslr_and_larger_windows_hold_smaller_ones(size, data):
    order = np.random.default_rng(size).permutation(size)
    count = data.draw(st.integers(0, size))
    window = medium(order, count, 0, 0).tolist()
    assert sorted(window) == sorted(mdslr(order.tolist(), count))
    if count < size:
        assert set(window) <= set(medium(order, count + 1, 0, 0).tolist())


def test_easy_and_hard_are_the_two_ends():
    scores, labels = np.array([0.3, 0.1, 0.4, 0.2], np.float32), np.zeros(4, np.int64)
    assert kept(scores, labels, 1, "easy").tolist() == [1, 3]
    assert kept(scores, labels, 1, "hard").tolist() == [0, 2]


@several_examples
@given(size=st.integers(1, 40), data=st.data())
def test_easy_and_hard_divide_the_samples(size, data):
    order = np.random.default_rng(size).permutation(size)
    count = data.draw(st.integers(0, size))
    ends = [*easy(order, count, 0, 0), *hard(order, size - count, 0, 0)]
    assert ends == order.tolist()


@pytest.mark.parametrize(
    ("method", "expected"), [("easy", [0, 1]), ("medium", [2, 3]), ("hard", [4, 5])]
)
@pytest.mark.parametrize("balance", BALANCES)
def test_ties_are_in_the_order_of_the_ids(method, expected, balance):
    scores, labels = np.zeros(6, np.float32), np.zeros(6, np.int64)
    ids = kept(scores, labels, 1, method, keep=2 / 6, balance=balance)
    assert ids.tolist() == expected


def test_ties_are_in_the_order_of_the_ids_in_large_classes_too():
    # Sorts that are not stable keep the order of a few equal values, but not of many.
    labels = np.tile([1, 0], 500).astype(np.int64)
    ids = kept(np.zeros(1000, np.float32), labels, 2, "easy", keep=0.1)
    assert ids.tolist() == list(range(100))


def test_without_balance_classes_compete():
    scores = np.array([1, 2, 3, 4, 5, 6], np.float32)
    labels = np.array([0, 0, 0, 1, 1, 1])
    assert kept(scores, labels, 2, "hard", balance="none").tolist() == [3, 4, 5]
    assert kept(scores, labels, 2, "hard", keep=2 / 6).tolist() == [2, 5]


@pytest.mark.parametrize("balance", BALANCES)
def test_a_random_selection_repeats_itself_and_follows_its_seed(balance):
    scores = np.random.default_rng(0).normal(size=200).astype(np.float32)
    labels = np.arange(200) % 3
    first, again, other = (
        kept(scores, labels, 3, "random", balance=balance, seed=seed) for seed in (0, 0, 1)
    )
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


@pytest.mark.parametrize("balance", BALANCES)
def test_a_random_selection_does_not_look_at_the_scores(balance):
    labels = np.arange(60) % 3
    scores = np.arange(60, dtype=np.float32)
    upward, downward = (
        kept(values, labels, 3, "random", balance=balance) for values in (scores, -scores)
    )
    assert upward.tolist() == downward.tolist()


@several_examples
@given(size=st.integers(1, 60), seed=st.integers(0, 99), data=st.data())
def test_a_larger_random_selection_keeps_what_a_smaller_one_keeps(size, seed, data):
    more = data.draw(st.integers(0, size))
    fewer = data.draw(st.integers(0, more))
    order = np.arange(size)[::-1]
    assert set(random(order, fewer, seed, 3)) <= set(random(order, more, seed, 3))


@pytest.mark.parametrize("balance", ["class", "none"])
def test_a_random_selection_of_a_larger_share_keeps_that_of_a_smaller_one(balance):
    labels = np.repeat([0, 1, 2], [5, 20, 75])
    scores = np.zeros(100, np.float32)
    before: set[int] = set()
    for percent in range(1, 101):
        ids = set(kept(scores, labels, 3, "random", keep=percent / 100, balance=balance).tolist())
        assert before <= ids
        before = ids


def test_random_draws_of_two_classes_are_independent():
    order = np.arange(50)
    assert random(order, 25, 0, 0).tolist() != random(order, 25, 0, 1).tolist()


@pytest.mark.parametrize("balance", BALANCES)
def test_every_sample_is_kept_by_chance_equally_often(balance):
    counts = np.zeros(12)
    scores, labels = np.arange(12, dtype=np.float32), np.arange(12) % 2
    for seed in range(600):
        counts[kept(scores, labels, 2, "random", keep=0.5, balance=balance, seed=seed)] += 1
    # Draws without replacement vary less than chisquare expects: the p value is on the safe side.
    assert chisquare(counts).pvalue > 0.01


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("method", POLICIES)
def test_a_score_that_is_not_finite_names_its_sample(method, value):
    scores = np.zeros(2000, np.float32)
    scores[[417, 1500]] = value
    with pytest.raises(ConfigError, match=rf"sample 417 is {value} \(2 such samples\)"):
        kept(scores, np.zeros(2000, np.int64), 1, method)


def test_an_unknown_method_lists_the_known():
    with pytest.raises(ConfigError, match="'middle', expected one of random, easy, hard, medium"):
        kept(np.zeros(2, np.float32), np.zeros(2, np.int64), 1, "middle")


def test_a_class_without_samples_is_no_obstacle():
    labels = np.array([0, 0, 3, 3])
    assert kept(np.arange(4, dtype=np.float32), labels, 6, "easy").tolist() == [0, 2]
