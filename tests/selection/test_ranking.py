"""The one sort: groups, ties, and the order of every kind of number."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from kdcache.selection.ranking import draws, rank
from tests.selection import reference

finite = {"allow_nan": False, "allow_infinity": False}
SCORES = st.integers(1, 60).flatmap(
    lambda count: st.one_of(
        arrays.arrays(np.float32, count, elements=st.floats(width=32, **finite)),
        arrays.arrays(np.float32, count, elements=st.sampled_from([-0.0, 0.0, 1.5, -1.5])),
        arrays.arrays(np.float64, count, elements=st.floats(**finite)),
        arrays.arrays(np.float64, count, elements=st.sampled_from([1.0, 1.0 + 2**-50, 0.1])),
        arrays.arrays(np.int64, count, elements=st.integers(-(2**62), 2**62)),
        arrays.arrays(np.int64, count, elements=st.integers(2**62, 2**62 + 2)),
        arrays.arrays(np.uint32, count, elements=st.integers(0, 2**32 - 1)),
        arrays.arrays(np.float16, count, elements=st.floats(width=16, **finite)),
    )
)


def ids_of(entries: np.ndarray) -> np.ndarray:
    return entries & np.uint64(0xFFFFFFFF)


@settings(max_examples=150, deadline=None)
@given(scores=SCORES, data=st.data())
def test_each_group_is_sorted_by_score_and_then_by_sample_id(scores, data):
    classes = data.draw(st.integers(1, 5))
    groups = data.draw(st.integers(1, 3))
    rng = np.random.default_rng(len(scores))
    labels = rng.integers(0, classes, len(scores))
    group_of_class = rng.integers(0, groups, classes)
    ranking = rank(scores, labels, group_of_class, groups)
    found = [ids_of(group).tolist() for group in ranking.groups()]
    values = scores.tolist()
    assert found == [
        reference.ranked(values, np.flatnonzero(group_of_class[labels] == group).tolist())
        for group in range(groups)
    ]


def test_positive_and_negative_zero_are_equal():
    scores = np.array([0.0, -0.0, 0.0, -0.0], np.float32)
    ranking = rank(scores, np.zeros(4, np.int64), np.zeros(1, np.int64), 1)
    assert ids_of(ranking.entries).tolist() == [0, 1, 2, 3]


def test_the_scores_are_not_changed():
    scores = np.array([3.0, -1.0, 2.0])
    before = scores.copy()
    rank(scores, np.zeros(3, np.int64), np.zeros(1, np.int64), 1)
    assert np.array_equal(scores, before)


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_draws_are_the_raw_bits_of_the_named_generator(count):
    found = draws(5, "select", count)
    assert found.dtype == np.uint32
    assert found.tolist() == reference.random_draws(5, count)


def test_fewer_draws_are_a_prefix_of_more_draws():
    assert draws(0, "select", 5).tolist() == draws(0, "select", 100)[:5].tolist()
