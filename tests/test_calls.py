"""A name with values: what is read, and where a text goes wrong."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.calls import Argument, Call, CallError, Word, parse_call, unused_names

NAMES = ("rrc", "pad-crop", "topk", "linear", "")


def values(text: str) -> list:
    """Return (name, value) of each argument."""
    return [(argument.name, argument.value) for argument in parse_call(text, NAMES).arguments]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("topk", []),
        (" topk ( ) ", []),
        ("topk(k=10)", [("k", 10)]),
        ("topk(k = -1.5e-3,j=+2)", [("k", -0.0015), ("j", 2)]),
        ("linear(.5, 5.)", [(None, 0.5), (None, 5.0)]),
        ("pad-crop(4, flip)", [(None, 4), (None, Word("flip"))]),
        ("rrc(flip=False, True)", [("flip", False), (None, True)]),
        ("rrc(scale=(0.08, 1), (1,2,3))", [("scale", (0.08, 1)), (None, (1, 2, 3))]),
        ("rrc(how=best)", [("how", Word("best"))]),
        ("0.9", [(None, 0.9)]),
        (" -3\n", [(None, -3)]),
        ("1e999", [(None, float("inf"))]),
        ("9" * 5000, [(None, float("inf"))]),
    ],
)
def test_names_numbers_pairs_and_words_are_read(text, expected):
    found = values(text)
    assert found == expected
    assert [type(value) for _, value in found] == [type(value) for _, value in expected]


def test_every_part_has_its_place():
    assert parse_call("topk( k =10, (1, 2)) ", NAMES) == Call(
        "topk", [Argument("k", 10, 6, 9), Argument(None, (1, 2), 13, 13)], 21
    )


@pytest.mark.parametrize(
    ("text", "expected", "character"),
    [
        ("", "a name or a number", 1),
        ("zip(k=1)", "one of rrc, pad-crop, topk, linear", 1),
        ("topk(", 'a name or a number or "(" or ")"', 6),
        ("topk(k=)", 'a name or a number or "("', 8),
        ("topk(k=1", '"," or ")"', 9),
        ("topk(k=1,)", 'a name or a number or "("', 10),
        ("topk(k=1) now", "the end", 11),
        ("topk(k=1)(2)", "the end", 10),
        ("topk k", '"(" or the end', 6),
        ("topk.k", '"(" or the end', 5),
        ("topk(2 + 2)", '"," or ")"', 8),
        ("topk(k='3')", 'a name or a number or "("', 8),
        ("topk(*k)", 'a name or a number or "(" or ")"', 6),
        ("rrc(scale=())", "a number", 12),
        ("rrc(scale=(1, a))", "a number", 15),
        ("rrc(scale=(1, 2)", '"," or ")"', 17),
        ("rrc(scale=(1,))", "a number", 14),
        ("rrc(scale=open('file'))", '"," or ")"', 15),
        ("0.9 0.5", "the end", 5),
    ],
)
def test_what_cannot_be_read_has_a_place(text, expected, character):
    with pytest.raises(CallError) as error:
        parse_call(text, NAMES)
    assert str(error.value) == f"expected {expected} at character {character}"


def test_a_number_alone_is_read_only_where_one_is_known():
    with pytest.raises(CallError, match=r"expected one of topk at character 1$"):
        parse_call("0.9", ["topk"])


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet="rc(),=1.e- ab'[", max_size=12))
def test_any_text_is_read_or_has_a_place_inside_it(text):
    try:
        call = parse_call(text, ["", "rc", "a"])
    except CallError as error:
        place = int(str(error).rpartition(" ")[2])
        assert 1 <= place <= len(text) + 1
    else:
        assert call.end == len(text)


def test_what_could_stand_for_a_wrong_name_is_what_is_left():
    form = {"scale": 1, "ratio": 2}
    assert unused_names(form, {}) == "scale or ratio"
    assert unused_names(form, {"scale": 3}) == "ratio"
    assert unused_names(form, form) == '")"'
