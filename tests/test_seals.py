"""A seal covers every byte of a file, whatever kind of file it is."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

from kdcache.errors import CacheCorruptError
from kdcache.seals import (
    BLANK,
    parse_sealed_json,
    parse_sealed_npz,
    read_sealed_json,
    seal,
    seal_file,
    seal_state,
    seal_state_of,
    sealed_json,
    sealed_npz,
    write_sealed_json,
)

CONTENTS = {
    "json": sealed_json({"a": [1, 2.5], "b": "text"}),
    "npz": sealed_npz({"ids": np.arange(5), "about": "{}"}),
}


@pytest.mark.parametrize("kind", CONTENTS)
@pytest.mark.parametrize("bits", [1, 0x20, 0xFF])
def test_every_changed_byte_is_noticed(kind, bits):
    content = CONTENTS[kind]
    assert seal_state(content) == "whole"
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= bits
        assert seal_state(bytes(changed)) != "whole", place


@pytest.mark.parametrize("kind", CONTENTS)
def test_added_and_lost_bytes_are_noticed(kind):
    content = CONTENTS[kind]
    for changed in (content[:-1], content[1:], content + b" ", b" " + content):
        assert seal_state(changed) != "whole"


def test_white_space_that_json_ignores_counts():
    assert seal_state(CONTENTS["json"].replace(b"  ", b"\t ", 1)) == "changed"


def test_other_programs_read_sealed_files():
    assert json.loads(CONTENTS["json"])["a"] == [1, 2.5]
    with np.load(io.BytesIO(CONTENTS["npz"])) as arrays:
        assert arrays["ids"].tolist() == [0, 1, 2, 3, 4]


def test_equal_content_has_equal_bytes():
    assert sealed_npz({"ids": np.arange(5), "about": "{}"}) == CONTENTS["npz"]


def test_what_was_sealed_comes_back_without_the_seal(tmp_path):
    write_sealed_json(tmp_path / "a.json", {"a": 1})
    assert read_sealed_json(tmp_path / "a.json", remedy="") == {"a": 1}
    assert list(parse_sealed_npz(CONTENTS["npz"], "x", remedy="")) == ["ids", "about"]


def test_a_file_is_sealed_in_place(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before " + BLANK.encode() + b" after")
    seal_file(path)
    assert path.read_bytes() == seal(b"before " + BLANK.encode() + b" after")
    assert seal_state_of(path) == "whole"
    with pytest.raises(ValueError, match="no blank seal"):
        seal_file(path)


@pytest.mark.parametrize("content", [b"", b"no seal", BLANK.encode() * 2, CONTENTS["json"]])
def test_only_one_blank_seal_is_filled(content):
    with pytest.raises(ValueError, match="expected one blank seal"):
        seal(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"x is not readable as JSON: .*\. Remedy"),
        (b"[]", r"x holds list, expected a JSON object\. Remedy"),
        (b"{}", r"x has no seal: an earlier version of kdcache wrote it, .*\. Remedy"),
        (CONTENTS["json"].replace(b"text", b"tekt"), r"x differs from its seal: .*\. Remedy"),
    ],
)
def test_a_damaged_file_is_named_with_the_remedy(content, message):
    with pytest.raises(CacheCorruptError, match=message):
        parse_sealed_json(content, "x", remedy="Remedy")


def test_an_empty_file_has_no_seal(tmp_path):
    (tmp_path / "empty").touch()
    assert seal_state_of(tmp_path / "empty") == "absent"
