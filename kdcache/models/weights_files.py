"""Check the bytes of a weights file without loading it; this needs no torch.

A checkpoint also protects plain files beside it, which must stay readable for any program: its
description holds the size and the sha256 of each of them at the time when it was written.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path

from kdcache.seals import MARK, seal_state_of

METADATA_KEY = "kdcache"
"""Key of the description in the metadata of a safetensors file."""

PROTECTS = "protects"
"""Key of the protected files in the description."""

_LENGTH = struct.Struct("<Q")
"""A safetensors file starts with the length of its header."""


def weights_problem(path: Path) -> str | None:
    """Return what is wrong with the bytes of a safetensors file; None if nothing is.

    Only a file that kdcache wrote has a seal. It also has the key `kdcache` in its metadata, so one
    changed byte never makes it look like the file of another program.
    """
    header = _header(path)
    state = seal_state_of(path)
    if state == "whole":
        return None
    if state == "changed" or MARK in header:
        return "differs from its seal: it was damaged or edited"
    if f'"{METADATA_KEY}"'.encode() in header:
        return "has no seal: an earlier version of kdcache wrote it, or it was damaged"
    return None


def protected(folder: Path, name: str) -> dict[str, list[int | str]]:
    """Return the entry of a file in a folder for `PROTECTS`: its name, size and hex sha256."""
    path = folder / name
    content = path.read_bytes() if path.exists() else b""
    return {name: [len(content), hashlib.sha256(content).hexdigest()]}


def problems_of_protected(path: Path) -> Iterator[tuple[Path, str]]:
    """Yield (file, problem) for the files beside a whole checkpoint that have changed since.

    Bytes after the recorded size do not count: a run that was stopped has not protected them yet.
    """
    about = json.loads(json.loads(_header(path))["__metadata__"].get(METADATA_KEY, "{}"))
    for name, (size, digest) in about.get(PROTECTS, {}).items():
        file = path.with_name(name)
        content = file.read_bytes()[:size] if file.exists() else b""
        if len(content) < size or hashlib.sha256(content).hexdigest() != digest:
            yield file, f"differs from its digest in {path.name}: it was damaged or edited"


def _header(path: Path) -> bytes:
    with path.open("rb") as file:
        start = file.read(_LENGTH.size)
        length = _LENGTH.unpack(start)[0] if len(start) == _LENGTH.size else 0
        return file.read(min(length, path.stat().st_size))
