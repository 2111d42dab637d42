"""The weight of the teacher: its text, its way over a run, its rule."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcache.errors import ConfigError
from kdcache.training.losses.alpha import AUTO_RULE, Alpha

SHARES = st.floats(0, 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (0.9, Alpha("constant", 0.9, 0.9)),
        (1, Alpha("constant", 1.0, 1.0)),
        ("0.25", Alpha("constant", 0.25, 0.25)),
        (" 1e-1 ", Alpha("constant", 0.1, 0.1)),
        (".5", Alpha("constant", 0.5, 0.5)),
        ("linear(0.9, 0.5)", Alpha("linear", 0.9, 0.5)),
        ("cosine( 1 ,0 )", Alpha("cosine", 1.0, 0.0)),
        ("linear(end=0.2, start=0.3)", Alpha("linear", 0.3, 0.2)),
        ("linear(0.3, end=0.2)", Alpha("linear", 0.3, 0.2)),
        ("auto", Alpha("auto")),
    ],
    ids=str,
)
def test_a_weight_is_parsed(text, expected):
    assert Alpha.parse(text) == expected
    assert Alpha.parse(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "expected", "character"),
    [
        ("", "a name or a number", 1),
        ("  ", "a name or a number", 3),
        ("often", "one of linear, cosine, auto", 1),
        ("0.9 0.5", "the end", 5),
        ("linear", r"linear\(start, end\) with start", 7),
        ("linear(0.9)", r"linear\(start, end\) with end", 12),
        ("linear(0.9; 0.5)", r'"," or "\)"', 11),
        ("linear(0.9, 0.5", r'"," or "\)"', 16),
        ("linear(0.9, 0.5) now", "the end", 18),
        ("linear(0.9, 0.5, 0.1)", "at most 2 numbers", 18),
        ("linear(0.9, middle=0.5)", "end", 13),
        ("linear(0.9, start=0.5)", "end", 13),
        ("linear(end=0.9, 0.5)", "a name: end was given", 17),
        ("linear(start 0.5)", r'"," or "\)"', 14),
        ("linear(start=high)", "a number", 14),
        ("linear(, 0.5)", "a name or a number", 8),
        ("auto(1)", "at most 0 numbers", 6),
        ("__import__('os')", "one of linear, cosine, auto", 1),
    ],
)
def test_a_malformed_weight_is_an_error_with_the_position(text, expected, character):
    with pytest.raises(ConfigError, match=rf"expected {expected}.* at character {character}\. "):
        Alpha.parse(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [(1.1, "1.1"), (-0.1, "-0.1"), (math.nan, "nan"), ("1.5", "1.5"), ("linear(0, 2)", "2.0")],
)
def test_a_weight_outside_0_and_1_is_refused(text, value):
    with pytest.raises(ConfigError, match=rf"alpha={value}: expected a number in \[0, 1\]"):
        Alpha.parse(text)


@given(start=SHARES, end=SHARES)
@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_str_keeps_all_digits_of_a_weight(kind, start, end):
    for alpha in (Alpha(kind, start, end), Alpha("constant", start, start)):
        assert Alpha.parse(str(alpha)) == alpha


@given(start=SHARES, end=SHARES, progress=SHARES)
@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_schedule_goes_from_start_to_end_and_stays_between_them(kind, start, end, progress):
    alpha = Alpha(kind, start, end)
    assert (alpha.at(0.0), alpha.at(1.0)) == (start, end)
    assert min(start, end) - 1e-15 <= alpha.at(progress) <= max(start, end) + 1e-15


@pytest.mark.parametrize(
    ("kind", "progress", "expected"),
    [
        ("linear", 0.25, 0.8),
        ("linear", 0.5, 0.7),
        ("cosine", 0.25, 0.9 - 0.4 * (1 - math.sqrt(0.5)) / 2),
        ("cosine", 0.5, 0.7),
        ("cosine", 1 / 3, 0.9 - 0.4 / 4),
    ],
)
def test_a_schedule_has_its_linear_or_cosine_shape(kind, progress, expected):
    assert Alpha(kind, 0.9, 0.5).at(progress) == pytest.approx(expected, rel=1e-12)


def test_a_number_is_constant():
    assert {Alpha.parse(0.3).at(progress) for progress in (0.0, 0.5, 1.0)} == {0.3}


@given(keep=st.floats(0.001, 1), less=st.floats(0.001, 1))
def test_auto_gives_the_teacher_more_weight_if_less_is_kept(keep, less):
    more_kept, less_kept = (Alpha("auto").for_keep(f).at(0.5) for f in (keep, keep * less))
    assert 0.5 <= more_kept <= less_kept < 1


def test_auto_follows_the_rule_that_is_logged():
    for keep in (0.1, 0.7, 1.0):
        expected = eval(AUTO_RULE, {"keep": keep})  # noqa: S307  (our own constant)
        assert Alpha("auto").for_keep(keep) == Alpha("constant", expected, expected)
    assert Alpha.parse(0.9).for_keep(0.1) == Alpha.parse(0.9)


def test_auto_has_no_weight_before_keep_is_known():
    with pytest.raises(ConfigError, match="alpha=auto"):
        Alpha("auto").at(0.0)
