"""Seal a file: keep the digest of all its bytes inside it.

A seal is the text `kdcache-seal:` with 64 hex digits. The digits are the sha256 of the whole file
with zeros in their place. So a seal covers every byte, white space and headers included, needs no
second file, and other programs see only one more text: a value in JSON, the comment of an npz
archive, metadata of a safetensors file.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kdcache.errors import CacheCorruptError
from kdcache.files import parse_json, read_npz, replace_atomically

MARK = b"kdcache-seal:"
_DIGITS = 64
BLANK = MARK.decode() + "0" * _DIGITS
"""The seal of a file before its digest is known."""

JSON_KEY = "seal"
"""Key of the seal in a JSON object."""

SealState = Literal["whole", "changed", "absent"]


def seal(content: bytes) -> bytes:
    """Return a file's content with its digest in place of the zeros of `BLANK`.

    Raises:
        ValueError: if it does not hold `BLANK` once, or holds another seal.
    """
    if content.count(MARK) != 1 or content.count(BLANK.encode()) != 1:
        raise ValueError(f"the content holds {content.count(MARK)} seals, expected one blank seal")
    start = content.index(MARK) + len(MARK)
    return content[:start] + _digest(content, start) + content[start + _DIGITS :]


def seal_file(path: Path) -> None:
    """Write the digest into a file with a blank seal, in place.

    Raises:
        ValueError: if the file has no blank seal.
    """
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        mark = content.find(MARK)
        start = mark + len(MARK)
        if mark < 0 or content[start : start + _DIGITS].strip(b"0"):
            raise ValueError(f"{path} holds no blank seal")
        content[start : start + _DIGITS] = _digest(content, start)


def seal_state(content: bytes | mmap.mmap) -> SealState:
    """Return whether a file's content fits its seal; `absent` if it has none."""
    mark = content.find(MARK)
    if mark < 0:
        return "absent"
    start = mark + len(MARK)
    is_whole = content[start : start + _DIGITS] == _digest(content, start)
    return "whole" if is_whole else "changed"


def seal_state_of(path: Path) -> SealState:
    """Return the state of a file's seal; the file is mapped, not loaded.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            return "absent"
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return seal_state(content)


def require_whole(state: SealState, name: object, remedy: str) -> None:
    """Check the state of a seal.

    Raises:
        CacheCorruptError: if the file has no seal, or differs from it.
    """
    if state == "absent":
        raise CacheCorruptError(
            f"{name} has no seal: an earlier version of kdcache wrote it, or it was damaged. "
            f"{remedy}"
        )
    if state == "changed":
        raise CacheCorruptError(f"{name} differs from its seal: it was damaged or edited. {remedy}")


def sealed_json(content: Mapping[str, Any]) -> bytes:
    """Return a sealed JSON object: indented, keys in their given order, the seal last."""
    return seal((json.dumps({**content, JSON_KEY: BLANK}, indent=2) + "\n").encode())


def write_sealed_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a sealed JSON object atomically."""
    with replace_atomically(path) as partial:
        partial.write_bytes(sealed_json(content))


def parse_sealed_json(content: bytes, name: object, *, remedy: str) -> dict[str, Any]:
    """Return a sealed JSON object, without the seal.

    Args:
        content: the file's bytes.
        name: path of the file, for messages.
        remedy: what to do about a damaged file.

    Raises:
        CacheCorruptError: if it is no JSON object, has no seal, or differs from it.
    """
    try:
        found = parse_json(content, name)
    except CacheCorruptError as error:
        raise CacheCorruptError(f"{error.text}. {remedy}") from error
    require_whole(seal_state(content), name, remedy)
    return {key: value for key, value in found.items() if key != JSON_KEY}


def read_sealed_json(path: Path, *, remedy: str) -> dict[str, Any]:
    """Return the content of a sealed JSON file; see `parse_sealed_json`.

    Raises:
        FileNotFoundError: if there is no such file.
        CacheCorruptError: if it is no JSON object, has no seal, or differs from it.
    """
    return parse_sealed_json(path.read_bytes(), path, remedy=remedy)


def sealed_npz(arrays: Mapping[str, npt.ArrayLike]) -> bytes:
    """Return an npz file whose comment is a seal; numpy reads it like any other."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    # The last two bytes of an archive without a comment are the comment's length.
    return seal(buffer.getvalue()[:-2] + struct.pack("<H", len(BLANK)) + BLANK.encode())


def write_sealed_npz(path: Path, arrays: Mapping[str, npt.ArrayLike]) -> None:
    """Write a sealed npz file atomically."""
    with replace_atomically(path) as partial:
        partial.write_bytes(sealed_npz(arrays))


def parse_sealed_npz(content: bytes, name: object, *, remedy: str) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a sealed npz file by name; pickled objects are refused.

    Raises:
        CacheCorruptError: if it is no npz file, has no seal, or differs from it.
    """
    try:
        arrays = read_npz(content)
    except CacheCorruptError as error:
        raise CacheCorruptError(f"{name} is no npz file ({error.text}). {remedy}") from error
    require_whole(seal_state(content), name, remedy)
    return arrays


def _digest(content: bytes | mmap.mmap, start: int) -> bytes:
    """Return the hex sha256 of a file's content with zeros at its seal's digits."""
    with memoryview(content) as view:
        found = hashlib.sha256(view[:start])
        found.update(b"0" * _DIGITS)
        found.update(view[start + _DIGITS :])
    return found.hexdigest().encode()
