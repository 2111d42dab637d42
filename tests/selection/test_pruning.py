"""What each method keeps, against slow references written from the formulas."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any, NamedTuple, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from kdcache.errors import ConfigError
from kdcache.options import Balance, PruningOptions
from kdcache.selection.beta import _log, default_peak
from kdcache.selection.context import Group, SampleData, SelectionContext
from kdcache.selection.methods import METHODS
from kdcache.selection.pruning import select_ids
from kdcache.selection.quotas import class_quotas, kept_total
from kdcache.selection.stratified import bin_budgets
from kdcache.selection.windows import easy, hard, medium
from tests.conftest import ROOT
from tests.selection import reference

several_examples = settings(max_examples=60, deadline=None)
DRAWING = {"random", "stratified", "beta", "class-adaptive"}
BALANCES = get_args(Balance)
ANY_CONTEXT = SelectionContext(PruningOptions(), np.zeros(1), np.zeros(1, np.int64), SampleData())
EACH = [
    pytest.param(method, balance, id=f"{method}, {balance}")
    for method, balance in itertools.product(METHODS, BALANCES)
    if (method, balance) != ("class-adaptive", "none")
]


def usual_options(method: str, keep: float) -> dict[str, float]:
    """Return options of a method, as far as a share to keep leaves room for them."""
    left = round(1 - keep, 9)
    return {
        "window": {"start": min(0.2, left)},
        "stratified": {"cut": min(0.1, left)},
        "beta": {"peak": 0.3, "concentration": 5.0},
    }.get(method, {})


class Data(NamedTuple):
    """A data set with its teacher's judgement."""

    scores: np.ndarray
    labels: np.ndarray
    correct: np.ndarray
    classes: int


@st.composite
def data_sets(draw: st.DrawFn) -> Data:
    """Draw scores with and without ties, labels with small and empty classes, and right answers."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    classes = draw(st.integers(1, 5))
    count = draw(st.integers(1, 120))
    labels = rng.choice(classes, size=count, p=rng.dirichlet(np.full(classes, 0.7)))
    scores = rng.gamma(0.3, size=count).astype(np.float32)
    if draw(st.booleans()):
        scores = np.round(rng.normal(size=count)).astype(np.float32)
    return Data(scores, labels.astype(np.int64), rng.random(count) < rng.random(), classes)


keeps = st.floats(0.001, 1.0)


def kept(data: Data, method: str = "medium", *, keep: float = 0.5, **options: Any) -> np.ndarray:
    return select_ids(
        data.scores,
        data.labels,
        PruningOptions(method=method, keep=keep, **(usual_options(method, keep) | options)),
        num_classes=data.classes,
        correct=data.correct,
    )


def one_class(scores: Any) -> Data:
    count = len(scores)
    return Data(np.asarray(scores, np.float32), np.zeros(count, np.int64), np.zeros(count, bool), 1)


def expected_ids(data: Data, method: str, balance: str, keep: float, seed: int) -> list[int]:
    """Work out a selection one class after the other."""
    groups = [np.flatnonzero(data.labels == label).tolist() for label in range(data.classes)]
    sizes = [len(group) for group in groups]
    total = kept_total(len(data.labels), keep)
    if balance == "none":
        groups, quotas = [list(range(len(data.labels)))], [total]
    else:
        densities = None
        if method == "class-adaptive":
            densities = [
                ((~data.correct[group]).sum().item() if group else 0, max(len(group), 1))
                for group in groups
            ]
        quotas = class_quotas(sizes, total, balance, densities=densities)
    draws = reference.random_draws(seed, len(data.labels))
    options = usual_options(method, keep)
    keep_in_group = reference.keep_in_group(method, data.scores, draws, options)
    orders = [reference.ranked(data.scores, group) for group in groups]
    return sorted(
        sample_id
        for order, quota in zip(orders, quotas, strict=True)
        for sample_id in keep_in_group(order, quota)
    )


@pytest.mark.parametrize(("method", "balance"), EACH)
@several_examples
@given(data=data_sets(), keep=keeps, seed=st.integers(0, 3))
def test_the_kept_ids_are_those_of_a_slow_reference(method, balance, data, keep, seed):
    seed = seed if method in DRAWING else 0
    actual = kept(data, method, keep=keep, balance=balance, seed=seed)
    assert actual.tolist() == expected_ids(data, method, balance, keep, seed)


@pytest.mark.parametrize(("method", "balance"), EACH)
@several_examples
@given(data=data_sets(), keep=keeps, minimum=st.integers(0, 3))
def test_a_selection_is_sorted_unique_and_of_the_requested_number(
    method, balance, data, keep, minimum
):
    sizes = np.bincount(data.labels, minlength=data.classes)
    least = np.minimum(sizes, minimum)
    total = max(1, int(np.floor(keep * len(data.labels) + 0.5)))
    if least.sum() > total:
        with pytest.raises(ConfigError, match=rf"min_per_class={minimum}.* {least.sum()} sam"):
            kept(data, method, keep=keep, balance=balance, min_per_class=minimum)
        return
    ids = kept(data, method, keep=keep, balance=balance, min_per_class=minimum)
    assert ids.dtype == np.int64
    assert (np.diff(ids) > 0).all()
    assert ids[0] >= 0
    assert ids[-1] < len(data.labels)
    assert len(ids) == total
    assert (np.bincount(data.labels[ids], minlength=data.classes) >= least).all()


@pytest.mark.parametrize(("method", "balance"), EACH)
@several_examples
@given(data=data_sets(), keep=keeps, more=keeps)
def test_selections_are_nested_if_no_class_keeps_fewer(method, balance, data, keep, more):
    keep, more = sorted((keep, more))
    options = usual_options(method, more)
    small, large = (kept(data, method, keep=k, balance=balance, **options) for k in (keep, more))
    counts = [np.bincount(data.labels[ids], minlength=data.classes) for ids in (small, large)]
    if method == "class-adaptive" or balance == "proportional":
        if (counts[0] > counts[1]).any():
            return
    elif method == "stratified" and balance == "class":
        return  # a class that keeps more than its share has less to cut
    assert set(small.tolist()) <= set(large.tolist())


@pytest.mark.parametrize("method", ["random", "hard", "medium", "beta"])
def test_at_ten_percent_steps_every_selection_is_nested(method):
    rng = np.random.default_rng(0)
    labels = rng.choice(7, 500, p=rng.dirichlet(np.full(7, 5)))
    data = Data(rng.normal(size=500).astype(np.float32), labels, labels < 0, 7)
    selections = [set(kept(data, method, keep=tenth / 10).tolist()) for tenth in range(1, 11)]
    for small, large in itertools.pairwise(selections):
        assert small < large


def test_the_window_of_medium_is_centred_and_one_longer_below():
    order = np.arange(10, dtype=np.uint64)

    def middle(entries: np.ndarray, quota: int) -> np.ndarray:
        return medium(Group(0, entries), quota, ANY_CONTEXT)

    assert middle(order, 4).tolist() == [3, 4, 5, 6]
    assert middle(order, 5).tolist() == [2, 3, 4, 5, 6]
    assert middle(order, 9).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert middle(order, 10).tolist() == list(range(10))
    assert middle(np.arange(11, dtype=np.uint64), 3).tolist() == [3, 4, 5]


@several_examples
@given(size=st.integers(1, 40), data=st.data())
def test_easy_and_hard_partition_the_samples(size, data):
    order = np.random.default_rng(size).permutation(size).astype(np.uint64)
    count = data.draw(st.integers(0, size))
    group = Group(0, order)
    lower, upper = easy(group, count, ANY_CONTEXT), hard(group, size - count, ANY_CONTEXT)
    assert [*lower, *upper] == order.tolist()


def test_easy_keeps_the_lowest_and_hard_the_highest_scores():
    data = one_class([0.3, 0.1, 0.4, 0.2])
    assert kept(data, "easy").tolist() == [1, 3]
    assert kept(data, "hard").tolist() == [0, 2]


def test_a_window_starts_at_its_quantile():
    data = one_class(np.arange(20)[::-1])
    assert kept(data, "window", start=0.0, keep=0.2).tolist() == [16, 17, 18, 19]
    assert kept(data, "window", start=0.5, keep=0.2).tolist() == [6, 7, 8, 9]
    assert kept(data, "window", start=0.8, keep=0.2).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("method", "expected"), [("easy", [0, 1]), ("medium", [2, 3]), ("hard", [4, 5])]
)
@pytest.mark.parametrize("balance", BALANCES)
def test_ties_are_in_the_order_of_the_ids(method, expected, balance):
    assert kept(one_class(np.zeros(6)), method, keep=2 / 6, balance=balance).tolist() == expected


def test_ties_are_in_the_order_of_the_ids_in_large_classes_too():
    # Sorts that are not stable keep the order of a few equal values, but not of many.
    labels = np.tile([1, 0], 500).astype(np.int64)
    data = Data(np.zeros(1000, np.float32), labels, labels < 0, 2)
    assert kept(data, "easy", keep=0.1, balance="proportional").tolist() == list(range(100))


def test_without_balance_classes_compete():
    labels = np.array([0, 0, 0, 1, 1, 1])
    data = Data(np.array([1, 2, 3, 4, 5, 6], np.float32), labels, labels < 0, 2)
    assert kept(data, "hard", balance="none").tolist() == [3, 4, 5]
    assert kept(data, "hard", keep=2 / 6).tolist() == [2, 5]


def test_without_balance_a_class_below_the_minimum_keeps_its_own_hardest():
    labels = np.array([0, 0, 0, 1, 1, 1, 2, 2])
    data = Data(np.array([1, 3, 2, 9, 8, 7, 5, 4], np.float32), labels, labels < 0, 3)
    assert kept(data, "hard", balance="none", keep=0.5).tolist() == [3, 4, 5, 6]
    with_least = kept(data, "hard", balance="none", keep=0.5, min_per_class=1)
    assert with_least.tolist() == [1, 3, 4, 6]
    assert kept(data, "hard", balance="none", keep=0.75, min_per_class=1).tolist() == [
        1,
        *range(3, 8),
    ]


def test_classes_that_the_teacher_gets_wrong_keep_more():
    labels = np.repeat([0, 1, 2], 100)
    correct = np.ones(300, bool)
    correct[np.r_[0:10, 100:130, 200:260]] = False
    data = Data(np.zeros(300, np.float32), labels, correct, 3)
    counts = np.bincount(labels[kept(data, "class-adaptive", keep=0.2)])
    assert counts.tolist() == [6, 18, 36]
    # The third class has only 100: density 1, and the others share the rest 1 : 3.
    counts = np.bincount(labels[kept(data, "class-adaptive", keep=0.6)])
    assert counts.tolist() == [20, 60, 100]


def test_class_adaptive_is_proportional_if_the_teacher_makes_no_errors():
    labels = np.repeat([0, 1], [20, 60])
    data = Data(np.zeros(80, np.float32), labels, np.ones(80, bool), 2)
    assert np.bincount(labels[kept(data, "class-adaptive", keep=0.5)]).tolist() == [10, 30]


def test_stratified_keeps_equally_many_from_each_bin():
    scores = np.concatenate([np.linspace(0, 0.0999, 900), np.linspace(0.1, 1, 100)])
    ids = kept(one_class(scores), "stratified", keep=0.1, cut=0.0)
    hard_ones = int((scores[ids] >= 0.1).sum())
    # Nine tenths of the bins; a random draw would keep 10 of them.
    assert hard_ones == 90


def test_a_score_on_the_edge_of_two_bins_is_in_the_upper_one():
    data = one_class(np.arange(101))  # edges at every even score
    ids = kept(data, "stratified", keep=0.5, cut=0.0)
    draws = reference.random_draws(0, 101)
    expected = reference.stratified(list(range(101)), 51, data.scores, draws, 0.0)
    assert ids.tolist() == sorted(expected)


def test_a_large_bin_keeps_the_samples_with_the_smallest_draws():
    # Sorting small arrays whole is what a partition does; of many samples it is not.
    ids = kept(one_class(np.zeros(3000)), "stratified", keep=0.3, cut=0.0)
    draws = reference.random_draws(0, 3000)
    assert ids.tolist() == sorted(reference.ranked(draws, range(3000))[:900])


def test_stratified_drops_the_hardest_first():
    scores = np.random.default_rng(0).permutation(200)
    ids = kept(one_class(scores), "stratified", keep=0.5, cut=0.3)
    assert scores[ids].max() < 140
    assert scores[kept(one_class(scores), "stratified", keep=0.5, cut=0.0)].max() > 190


@several_examples
@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=10), data=st.data())
def test_the_budgets_of_bins_sum_to_the_total(sizes, data):
    total = data.draw(st.integers(0, sum(sizes)))
    budgets = bin_budgets(sizes, total)
    assert sum(budgets) == total
    assert all(0 <= budget <= size for budget, size in zip(budgets, sizes, strict=True))


@pytest.mark.parametrize("keep", [0.1, 0.3, 0.7])
@pytest.mark.parametrize(("peak", "concentration"), [(0.2, 14.0), (0.9, 3.0), (0.5, 0.0)])
def test_beta_draws_like_one_sample_after_the_other_without_replacement(keep, peak, concentration):
    count, seeds = 20, 400
    quantiles = (np.arange(count) + 0.5) / count
    weights = quantiles ** (concentration * peak) * (1 - quantiles) ** (concentration * (1 - peak))
    rng = np.random.default_rng(1)
    chosen, drawn = np.zeros(count), np.zeros(count)
    for seed in range(seeds):
        data = one_class(np.arange(count))
        options = {"keep": keep, "peak": peak, "concentration": concentration, "seed": seed}
        chosen[kept(data, "beta", **options)] += 1
        number = kept_total(count, keep)
        drawn[rng.choice(count, number, replace=False, p=weights / weights.sum())] += 1
    # Shares of 400 draws: their difference has a standard deviation of at most 0.035.
    assert abs(chosen - drawn).max() / seeds < 0.14


@settings(max_examples=200, deadline=None)
@given(x=st.floats(1e-12, 50.0))
def test_the_logarithm_of_beta_agrees_with_the_c_library(x):
    # Near 1 both lose the same digits of x - 1; elsewhere the series ends below 1e-13.
    assert _log(x) == pytest.approx(math.log(x), rel=2e-13, abs=1e-15)


def test_the_peak_of_beta_is_easier_if_less_is_kept():
    data = one_class(np.arange(2000))
    means = [kept(data, "beta", keep=keep, peak=None).mean() for keep in (0.05, 0.2, 0.4)]
    assert means == sorted(means)
    assert [default_peak(keep) for keep in (0.0, 0.5, 1.0)] == [0.0, 0.46875, 0.5]


@pytest.mark.parametrize("method", ["random", "stratified", "beta", "class-adaptive"])
@pytest.mark.parametrize("balance", ["proportional", "class"])
def test_a_random_selection_depends_on_its_seed_only(method, balance):
    labels = np.arange(200) % 3
    scores = np.random.default_rng(0).normal(size=200).astype(np.float32)
    data = Data(scores, labels, np.zeros(200, bool), 3)
    first, again, other = (
        kept(data, method, balance=balance, seed=seed).tolist() for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_draws_match_the_golden_file():
    for case in json.loads((ROOT / "tests" / "golden" / "selections.json").read_text()):
        ids = select_ids(
            np.array(case["scores"], np.float32),
            np.array(case["labels"]),
            PruningOptions(method=case["method"], keep=0.3, seed=case["seed"]),
            num_classes=3,
            correct=np.arange(60) % 4 > 0,
        )
        assert ids.tolist() == case["kept"], (case["method"], case["seed"])


@pytest.mark.parametrize("balance", BALANCES)
def test_a_random_selection_ignores_the_scores(balance):
    labels = np.arange(60) % 3
    upward, downward = (
        kept(
            Data(sign * np.arange(60, dtype=np.float32), labels, labels < 0, 3),
            "random",
            balance=balance,
        )
        for sign in (1, -1)
    )
    assert upward.tolist() == downward.tolist()


@pytest.mark.parametrize("balance", BALANCES)
def test_a_random_selection_keeps_every_sample_equally_often(balance):
    counts = np.zeros(12)
    data = Data(np.arange(12, dtype=np.float32), np.arange(12) % 2, np.zeros(12, bool), 2)
    for seed in range(600):
        counts[kept(data, "random", balance=balance, seed=seed)] += 1
    # Draws without replacement vary less than chisquare expects: the p value is on the safe side.
    assert chisquare(counts).pvalue > 0.01


def test_random_draws_of_two_classes_are_independent():
    labels = np.repeat([0, 1], 50)
    ids = kept(Data(np.zeros(100, np.float32), labels, labels < 0, 2), "random")
    assert ids[ids < 50].tolist() != (ids[ids >= 50] - 50).tolist()


def test_double_scores_that_float32_would_make_equal_keep_their_order():
    scores = np.array([1 + 3e-9, 1 + 1e-9, 1 + 2e-9, 1.0])
    labels = np.zeros(4, np.int64)
    ids = select_ids(scores, labels, PruningOptions(method="hard", keep=0.5), num_classes=1)
    assert ids.tolist() == [0, 2]


def test_the_inputs_are_not_changed():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 100)
    data = Data(rng.normal(size=100).astype(np.float32), labels, labels < 2, 3)
    before = [array.copy() for array in data[:3]]
    for method in METHODS:
        kept(data, method)
    for array, was in zip(data[:3], before, strict=True):
        assert np.array_equal(array, was)


@pytest.mark.parametrize("kind", [np.float16, ">f4", ">f8", ">i4", np.uint8, bool])
@pytest.mark.parametrize("method", METHODS)
def test_the_selection_does_not_depend_on_the_dtype_of_the_scores(method, kind):
    scores = (np.arange(100) * 37 % 101 % 7).astype(kind)
    data = one_class(np.zeros(100))
    expected = kept(data._replace(scores=scores.astype(np.float32)), method)
    assert kept(data._replace(scores=scores), method).tolist() == expected.tolist()


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 1.5}, r"keep=1\.5: expected a number in \(0, 1\]"),
        ({"keep": 0.0}, r"keep=0\.0"),
        ({"keep": math.nan}, "keep=nan"),
        ({"method": "window", "start": -0.5}, r"start=-0\.5: .* \[0, 0\.5\]"),
        ({"method": "window", "start": None}, "start is not given"),
        ({"method": "stratified", "cut": 0.6}, r"cut=0\.6: .* \[0, 0\.5\]"),
        ({"method": "beta", "peak": -0.1}, r"peak=-0\.1"),
        ({"method": "beta", "concentration": math.inf}, "concentration=inf"),
        ({"method": "medium", "start": 0.1}, r"start=0\.1: expected method window"),
        ({"method": "hard", "seed": 1}, "seed=1: expected method random"),
        ({"method": "random", "seed": -1}, "seed=-1"),
        ({"min_per_class": -1}, "min_per_class=-1"),
    ],
    ids=str,
)
def test_an_option_outside_its_range_is_refused_in_a_library_call_too(options, message):
    with pytest.raises(ConfigError, match=message):
        kept(one_class(np.arange(20)), **({"balance": "none"} | options))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_the_error_of_a_non_finite_score_names_its_sample(method, value):
    data = one_class(np.zeros(2000))
    data.scores[[417, 1500]] = value
    message = rf"sample 417 is {value} \(2 such samples\).* samples 417, 1500$"
    with pytest.raises(ConfigError, match=message):
        kept(data, method)


def test_the_error_of_many_non_finite_scores_names_the_first():
    scores = np.full(30, np.nan)
    with pytest.raises(ConfigError, match=r"samples 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 20 more"):
        kept(one_class(scores))


def test_the_error_of_an_unknown_method_or_balance_lists_the_known():
    with pytest.raises(ConfigError, match="method=middle: expected one of random, easy, hard"):
        kept(one_class([0, 0]), "middle")
    with pytest.raises(ConfigError, match="balance=fair: expected one of proportional, class"):
        kept(one_class([0, 0]), balance="fair")


def test_class_adaptive_needs_a_balance_and_the_teachers_errors():
    with pytest.raises(ConfigError, match="balance=none: expected proportional or class"):
        kept(one_class([0, 0]), "class-adaptive", balance="none")
    with pytest.raises(ConfigError, match="correct is None"):
        kept(one_class([0, 0])._replace(correct=None), "class-adaptive")


def test_arrays_that_do_not_match_are_refused():
    data = one_class(np.zeros(5))
    with pytest.raises(ConfigError, match=r"shape \(5,\) and labels \(4,\)"):
        kept(data._replace(labels=np.zeros(4, np.int64)))
    with pytest.raises(ConfigError, match="labels are 0 to 3, expected 0 to 0"):
        kept(data._replace(labels=np.array([0, 1, 2, 3, 0])))
    with pytest.raises(ConfigError, match="labels are -1 to 0, expected 0 to 0"):
        kept(data._replace(labels=np.array([0, -1, 0, 0, 0])))


def test_a_class_without_samples_is_accepted():
    labels = np.array([0, 0, 3, 3])
    data = Data(np.arange(4, dtype=np.float32), labels, labels < 0, 6)
    assert kept(data, "easy").tolist() == [0, 2]
    assert kept(data, "easy", min_per_class=1).tolist() == [0, 2]
