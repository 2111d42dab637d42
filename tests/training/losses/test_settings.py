"""What a loss can be told, what it makes of it, and what it refuses."""

from __future__ import annotations

import json

import pytest

from kdcache.errors import ConfigError
from kdcache.options import TrainOptions
from kdcache.training.losses.dist import Dist
from kdcache.training.losses.dkd import Dkd
from kdcache.training.losses.hinton import Kd
from kdcache.training.losses.settings import LossSettings, parse_method
from tests.store.codecs import make_codec


def settings_of(**options: object) -> LossSettings:
    return LossSettings.of(TrainOptions(**options))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kd", Kd()),
        ("dkd", Dkd(1.0, 8.0, 0.08)),
        ("dkd(beta=2)", Dkd(beta=2.0)),
        ("dkd(2, 3, 0)", Dkd(2.0, 3.0, 0.0)),
        ("dkd(0.5, warm_up=0.1)", Dkd(0.5, 8.0, 0.1)),
        ("dist", Dist(2.0, 2.0)),
        ("dist(gamma=0)", Dist(2.0, 0.0)),
        ("dkd(1e6, 1000001)", Dkd(1e6, 1_000_001.0)),
        ("dist(0.12345678, 0.1)", Dist(0.12345678, 0.1)),
    ],
)
def test_a_loss_is_parsed(text, expected):
    assert parse_method(text) == expected
    assert parse_method(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kl", r"loss=kl: expected one of kd, dkd, dist at character 1"),
        ("kd(0.9)", "at most 0 numbers at character 4"),
        ("dkd(gamma=1)", "expected alpha or beta or warm_up at character 5"),
        ("dkd(beta=-1)", r"beta=-1, .*expected finite weights >= 0"),
        ("dkd(alpha=-1)", r"alpha=-1, .*expected finite weights >= 0"),
        ("dkd(0, 0)", "at least one of them > 0"),
        ("dkd(beta=1e999)", "beta=inf"),
        ("dkd(warm_up=1.5)", r"warm_up of dkd is 1\.5, expected a fraction in \[0, 1\]"),
        ("dkd(warm_up=-0.5)", r"warm_up of dkd is -0\.5"),
        ("dist(0, 0)", r"dist\(beta=0, gamma=0\): expected finite weights"),
        ("dist(gamma=-2)", "gamma=-2"),
        ("dist(beta=-2)", "beta=-2"),
        ("dist(1e999)", "beta=inf"),
    ],
)
def test_an_invalid_loss_is_an_error(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_method(text)


@pytest.mark.parametrize(
    ("options", "alpha", "temperature"),
    [
        ({}, 0.9, 4.0),
        ({"loss": "dkd"}, 0.5, 4.0),
        ({"loss": "dist"}, 0.5, 4.0),
        ({"standardise": True}, 0.9, 2.0),
        ({"loss": "dkd", "alpha": 0.7, "temperature": 1.0}, 0.7, 1.0),
        ({"standardise": True, "temperature": 3.0, "alpha": "0.2"}, 0.2, 3.0),
    ],
    ids=str,
)
def test_alpha_and_temperature_default_to_those_of_the_loss(options, alpha, temperature):
    found = settings_of(**options)
    assert (found.alpha.at(0.5), found.temperature) == (alpha, temperature)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, r"temperature=0\.0: expected a number above 0"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"label_smoothing": 1.0}, r"label_smoothing=1\.0: expected a number in \[0, 1\)"),
        ({"label_smoothing": -0.1}, r"label_smoothing=-0\.1"),
        ({"mixup": 0.0}, r"mixup=0\.0: expected a number above 0"),
        ({"cutmix": -1.0}, r"cutmix=-1\.0"),
        ({"cutmix": float("inf"), "mixup": 1.0}, "cutmix=inf"),
        ({"reshape": True, "standardise": True}, "reshape=True is given with standardise=True"),
        ({"loss": "dist", "standardise": True}, "standardise=True is given with loss dist"),
        ({"loss": "dkd", "mixup": 0.2}, "mixup is given with loss dkd, expected kd or dist"),
        ({"loss": "dkd", "cutmix": 1.0}, "cutmix is given with loss dkd"),
        ({"label_smoothing": 0.1, "alpha": 1}, r"label_smoothing=0\.1 with alpha=1,"),
        ({"label_smoothing": 0.1, "alpha": "linear(1, 1)"}, r"with alpha linear\(1, 1\),"),
    ],
    ids=str,
)
def test_values_out_of_range_and_contradictions_are_errors(options, message):
    with pytest.raises(ConfigError, match=message):
        settings_of(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"reshape": True, "loss": "dkd"},
        {"reshape": True, "loss": "dist"},
        {"reshape": True, "mixup": 0.2},
        {"standardise": True, "loss": "dkd"},
        {"standardise": True, "cutmix": 1.0},
        {"loss": "dist", "mixup": 0.2, "cutmix": 1.0},
        {"label_smoothing": 0.1, "alpha": "linear(1, 0.5)"},
        {"label_smoothing": 0.1, "alpha": "auto"},
        {"label_smoothing": 0.1, "mixup": 0.2},
    ],
    ids=str,
)
def test_meaningful_combinations_are_accepted(options):
    assert settings_of(**options).content != settings_of().content


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "kd, alpha 0.9, T 4"),
        (
            {"reshape": True, "label_smoothing": 0.1},
            "kd, alpha 0.9, T 4, reshape, label smoothing 0.1",
        ),
        (
            {"loss": "dist", "alpha": "cosine(0.5, 1)", "cutmix": 1.0, "mixup": 0.2},
            "dist(beta=2, gamma=2), alpha cosine(0.5, 1), T 4, mixup 0.2, cutmix 1",
        ),
        (
            {"loss": "dkd(2, warm_up=0)", "standardise": True, "alpha": "auto"},
            "dkd(alpha=2, beta=8, warm_up=0), alpha auto, T 2, standardise",
        ),
    ],
    ids=str,
)
def test_str_shows_the_settings_of_the_loss(options, words):
    assert str(settings_of(**options)) == words


def test_labels_alone_shows_the_settings_without_a_teacher():
    assert settings_of().labels_alone() == "labels alone"
    found = settings_of(label_smoothing=0.1, mixup=0.2).labels_alone()
    assert found == "labels alone, label smoothing 0.1, mixup 0.2"


def test_every_option_of_the_loss_is_in_its_content():
    changes = {
        "loss": "dkd(beta=2)",
        "alpha": "linear(0.9, 0.5)",
        "temperature": 3.0,
        "reshape": True,
        "label_smoothing": 0.1,
    }
    others = {"standardise": True, "mixup": 0.3, "cutmix": 0.7}
    found, other = settings_of(**changes).content, settings_of(**others).content
    assert found == changes | {
        "loss": "dkd(alpha=1, beta=2, warm_up=0.08)",
        "standardise": False,
        "mixup": None,
        "cutmix": None,
    }
    assert {name: other[name] for name in others} == others
    assert json.loads(json.dumps(found)) == found
    assert settings_of(alpha=0.25).content["alpha"] == 0.25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"temperature": 4.0},
            r"temperature=4: expected 2: the rows of a\.zarr are sampled\(",
        ),
        (
            {"temperature": 2.0, "reshape": True},
            r"reshape=True is given with a\.zarr, whose rows are s",
        ),
        ({"temperature": 2.0, "standardise": True}, r"standardise=True is given with a\.zarr"),
        ({"temperature": 2.0, "loss": "dkd"}, r"loss dkd is given with a\.zarr"),
        ({"temperature": 2.0, "loss": "dist"}, r"loss dist is given with a\.zarr"),
    ],
    ids=str,
)
def test_sampled_rows_are_refused_for_losses_that_they_would_bias(options, message):
    with pytest.raises(ConfigError, match=message):
        settings_of(**options).require_codec(make_codec("sampled", 5), "a.zarr")


def test_sampled_rows_are_accepted_for_plain_kd_at_their_temperature():
    settings_of(temperature=2.0).require_codec(make_codec("sampled", 5), "a.zarr")
    settings_of(temperature=2.0, mixup=0.2).require_codec(make_codec("sampled", 5), "a.zarr")
    for kind in ("dense", "int8", "topk", "lowrank", "float32"):
        settings_of(loss="dkd", reshape=True).require_codec(make_codec(kind, 5), "a.zarr")
