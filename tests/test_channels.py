"""Mean and std from the words of an option."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcache.channels import (
    NormalisationWords,
    choose_normalisation,
    describe_channels,
    parse_normalisations,
)
from kdcache.errors import ConfigError

DATA = ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def read(mean: str | None, std: str | None = None) -> tuple[list[float], list[float]]:
    means, stds = ([] if text is None else [text] for text in (mean, std))
    (words,) = parse_normalisations(means, stds)
    return words.values(DATA)


@pytest.mark.parametrize(
    ("mean", "std", "expected"),
    [
        ("0.1,0.2,0.3", "0.4,0.5,1", ([0.1, 0.2, 0.3], [0.4, 0.5, 1.0])),
        ("0.5, 0.5, 0.5", "0.5", ([0.5] * 3, [0.5] * 3)),
        ("0", "0.00392156862745098", ([0.0] * 3, [1 / 255] * 3)),
        ("imagenet", None, IMAGENET),
        (None, "imagenet", IMAGENET),
        ("none", None, ([0.0] * 3, [1.0] * 3)),
        ("data", None, DATA),
        ("imagenet", "data", (IMAGENET[0], DATA[1])),
        ("imagenet", "1", (IMAGENET[0], [1.0] * 3)),
    ],
)
def test_words_become_three_numbers_each(mean, std, expected):
    assert read(mean, std) == expected


@pytest.mark.parametrize(
    ("mean", "std", "match"),
    [
        ("123.675,116.28,103.53", "0.2", r"teacher_mean=123.*divide values for \[0, 255\] by 255"),
        ("0.5", "58.395,57.12,57.375", r"teacher_std=58.*above 0 and at most 1.*by 255"),
        (
            "0.5",
            "0",
            r"teacher_std=0: expected imagenet, none, data, or one or three numbers above",
        ),
        ("-0.1", "0.2", r"teacher_mean=-0\.1: .*in \[0, 1\]"),
        ("nan", "0.2", r"teacher_mean=nan: "),
        ("0.5,0.5", "0.2", r"teacher_mean=0\.5,0\.5: .*one or three numbers"),
        ("0.5,0.5,0.5,0.5", "0.2", "one or three numbers"),
        ("cifar10", "0.2", "teacher_mean=cifar10: expected imagenet, none, data, or"),
        ("", "0.2", "teacher_mean=''"),
        ("0.5", None, "teacher_mean=0.5: expected teacher_std beside it"),
        (None, "0.5", "teacher_std=0.5: expected teacher_mean beside it"),
    ],
)
def test_words_that_are_no_normalisation_are_refused(mean, std, match):
    with pytest.raises(ConfigError, match=match):
        read(mean, std)


def test_the_two_options_pair_up():
    assert parse_normalisations([], []) == []
    pairs = parse_normalisations(["imagenet", "0.5"], ["imagenet", "0.25"])
    assert pairs == [("imagenet", "imagenet"), ("0.5", "0.25")]
    with pytest.raises(
        ConfigError, match=r"teacher_mean=imagenet, 0\.5: expected 1, as many as teacher_std"
    ):
        parse_normalisations(["imagenet", "0.5"], ["0.25"])


@given(st.lists(st.floats(0.001, 1), min_size=3, max_size=3))
def test_the_words_of_numbers_stand_for_exactly_these(numbers):
    assert NormalisationWords.of_values(numbers, numbers).values(DATA) == (numbers, numbers)


def test_what_the_model_states_goes_before_the_data_and_against_no_option():
    stated = ([0.5] * 3, [0.25] * 3)
    chosen = choose_normalisation("m", given=None, stated=stated, data=DATA)
    assert (chosen.mean, chosen.std, chosen.is_assumed) == (*stated, False)
    same = NormalisationWords("0.5", "0.25")
    assert choose_normalisation("m", given=same, stated=stated, data=DATA) == chosen
    nobody = choose_normalisation("m", given=None, stated=None, data=DATA)
    assert (nobody.mean, nobody.std, nobody.is_assumed) == (*DATA, True)
    words = NormalisationWords("data", "data")
    assert not choose_normalisation("m", given=words, stated=None, data=DATA).is_assumed
    other = NormalisationWords("0.5", "0.3")
    with pytest.raises(
        ConfigError, match=r"std 0\.3,0\.3,0\.3, but m states .*std 0\.25,"
    ) as error:
        choose_normalisation("m", given=other, stated=stated, data=DATA)
    assert str(error.value).endswith("Leave teacher_mean and teacher_std out")


def test_channels_are_shown_as_the_option_takes_them():
    assert describe_channels([0.48500001, 1 / 3, 1.0]) == "0.485,0.3333,1"
