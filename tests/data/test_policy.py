from __future__ import annotations

import re

import pytest
from hypothesis import given, settings

from kdcache.data.policy import Policy
from kdcache.errors import ConfigError
from tests.data.policies import policies


@given(policies())
@settings(deadline=None, max_examples=100)
def test_a_policy_reads_what_it_writes(policy):
    assert Policy.parse(str(policy)) == policy


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("clean", Policy("clean")),
        ("clean()", Policy("clean")),
        ("pad-crop", Policy("pad-crop", padding=4, flip=True)),
        ("pad-crop(2)", Policy("pad-crop", padding=2, flip=True)),
        ("pad-crop(2, flip)", Policy("pad-crop", padding=2, flip=True)),
        ("pad-crop(2, flip=False)", Policy("pad-crop", padding=2, flip=False)),
        (" pad-crop(padding=0) ", Policy("pad-crop", padding=0, flip=True)),
        ("rrc", Policy("rrc", scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=True)),
        ("rrc(scale=(0.25, 1))", Policy("rrc", scale=(0.25, 1.0), flip=True)),
        ("rrc(ratio=(1, 2), flip=False)", Policy("rrc", ratio=(1.0, 2.0), flip=False)),
        ("rrc(brightness=0.4)", Policy("rrc", flip=True, brightness=(0.6, 1.4))),
        ("rrc(contrast=(0.5, 1))", Policy("rrc", flip=True, contrast=(0.5, 1.0))),
        ("rrc(saturation=2)", Policy("rrc", flip=True, saturation=(0.0, 3.0))),
        ("rrc(erase=1)", Policy("rrc", flip=True, erase=1.0)),
        (
            "pad-crop(2, erase=0.5, erase_scale=(0.1, 0.2), erase_ratio=(1, 2))",
            Policy(
                "pad-crop",
                padding=2,
                flip=True,
                erase=0.5,
                erase_scale=(0.1, 0.2),
                erase_ratio=(1.0, 2.0),
            ),
        ),
    ],
)
def test_a_short_form_takes_the_usual_options(text, expected):
    assert Policy.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("clean", "clean"),
        ("pad-crop(4, flip)", "pad-crop(4, flip=True)"),
        ("rrc", "rrc(scale=(0.08, 1.0), ratio=(0.75, 1.3333333333333333), flip=True)"),
        ("pad-crop(1, brightness=0, erase=0)", "pad-crop(1, flip=True)"),
        (
            "pad-crop(saturation=0.4, brightness=0.25)",
            "pad-crop(4, flip=True, brightness=(0.75, 1.25), saturation=(0.6, 1.4))",
        ),
        (
            "pad-crop(erase=0.25)",
            "pad-crop(4, flip=True, erase=0.25, erase_scale=(0.02, 0.33), erase_ratio=(0.3, 3.3))",
        ),
    ],
)
def test_a_policy_has_one_spelling_that_never_changes(text, written):
    # Stores are told apart by it.
    assert str(Policy.parse(text)) == written


@pytest.mark.parametrize(
    "text",
    [
        "",
        "crop",
        "pad-crop(",
        "pad-crop(4.0)",
        "pad-crop(True)",
        "pad-crop(4, flip=1)",
        "pad-crop(4, 5)",
        "pad-crop(4, padding=5)",
        "pad-crop(4, scale=(0.1, 1))",
        "pad-crop(4, flipped)",
        "pad-crop(*(4,))",
        "pad-crop(**{'padding': 4})",
        "pad-crop(2 + 2)",
        "rrc(0.25)",
        "rrc(scale=0.25)",
        "rrc(scale=(0.25,))",
        "rrc(scale=(0.25, 0.5, 1))",
        "rrc(scale=('a', 'b'))",
        "clean(4)",
        "clean(flip=True)",
        "clean(brightness=0.4)",
        "rrc(brightness=True)",
        "rrc(contrast=(0.5,))",
        "rrc(saturation='0.4')",
        "rrc(erase=(0.1, 0.2))",
        "rrc(erase=True)",
        "rrc(erase_scale=0.3)",
        "views.rrc",
        "rrc()()",
        "rrc; clean",
        "1",
    ],
)
def test_another_text_is_refused_and_named(text):
    with pytest.raises(ConfigError, match=re.escape(f"policy is {text!r}")):
        Policy.parse(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("pad-crop(-1)", "-1"),
        ("pad-crop(65536)", "65536"),
        ("rrc(scale=(0, 1))", "(0.0, 1.0)"),
        ("rrc(scale=(0.5, 0.25))", "(0.5, 0.25)"),
        ("rrc(scale=(0.5, 1.5))", "(0.5, 1.5)"),
        ("rrc(ratio=(0, 1))", "(0.0, 1.0)"),
        ("rrc(ratio=(2, 1))", "(2.0, 1.0)"),
        ("rrc(ratio=(1, 1e999))", "(1.0, inf)"),
        ("rrc(brightness=(-0.1, 1))", "(-0.1, 1.0)"),
        ("rrc(contrast=(2, 1))", "(2.0, 1.0)"),
        ("rrc(saturation=(1, 10.5))", "(1.0, 10.5)"),
        ("rrc(erase=1.5)", "1.5"),
        ("rrc(erase=-0.5)", "-0.5"),
        ("rrc(erase=1, erase_scale=(0.5, 2))", "(0.5, 2.0)"),
        ("rrc(erase=1, erase_ratio=(0, 2))", "(0.0, 2.0)"),
        ("rrc(erase_scale=(0.1, 0.2))", "0.0 with erase_scale"),
        ("rrc(erase_ratio=(0.1, 0.2))", "0.0 with erase_scale or erase_ratio"),
    ],
)
def test_a_number_outside_its_range_is_refused_and_named(text, value):
    with pytest.raises(ConfigError, match=re.escape(f"of a policy is {value}")):
        Policy.parse(text)


@pytest.mark.parametrize(
    "form",
    ["open({path!r}, 'w')", "pad-crop(open({path!r}, 'w'))", "rrc(scale=open({path!r}, 'w'))"],
)
def test_nothing_in_a_policy_is_evaluated(form, tmp_path):
    path = tmp_path / "written"
    with pytest.raises(ConfigError, match="policy is"):
        Policy.parse(form.format(path=str(path)))
    assert not path.exists()


def test_the_clean_policy_takes_no_changes():
    with pytest.raises(ConfigError, match=r"brightness=\(0\.5, 1\.0\)"):
        Policy("clean", brightness=(0.5, 1.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "crop"}, "kind=crop: expected one of clean, pad-crop, rrc"),
        ({"kind": "rrc", "padding": 3}, "padding of a policy is 3, expected none with kind rrc"),
        ({"kind": "pad-crop", "ratio": (1, 1)}, "ratio of a policy is .* with kind pad-crop"),
        (
            {"kind": "clean", "flip": True},
            "flip of a policy is True, expected none with kind clean",
        ),
    ],
    ids=["kind", "padding", "ratio", "flip"],
)
def test_an_option_that_the_kind_does_not_use_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Policy(**options)
