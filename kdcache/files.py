"""Write files that appear complete or not at all, and read and digest them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdcache.errors import CacheCorruptError


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path; `path` appears complete, flushed to disk, or not at all."""
    make_directory(path.parent)
    partial = path.with_name(f".{path.name}.{this_process()}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        sync_directory(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def make_directory(directory: Path) -> None:
    """Make a directory and those above it, each flushed, so that they survive a power cut."""
    if directory.is_dir():
        return
    make_directory(directory.parent)
    directory.mkdir(exist_ok=True)
    sync_directory(directory.parent)


def sync_directory(directory: Path) -> None:
    """Flush a directory's entries, so that a rename in it survives a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def this_process() -> str:
    """Return an identifier of this process, PID@NODE, unique across machines; it has no dot."""
    return f"{os.getpid()}@{platform.node()}".replace(".", "-")


def sweep_partials(directory: Path, *, recursive: bool = False) -> None:
    """Remove the partial files of processes that no longer run from `directory`.

    Partial files of other machines stay: their processes may still run.
    """
    for partial in (directory.rglob if recursive else directory.glob)(".*.partial"):
        pid, _, node = partial.name.split(".")[-2].partition("@")
        if node != this_process().partition("@")[2] or Path("/proc", pid).exists():
            continue
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` atomically, indented, keys in their given order."""
    with replace_atomically(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        FileNotFoundError: if the file is missing.
        CacheCorruptError: if it does not hold a JSON object.
    """
    return parse_json(path.read_bytes(), path)


def parse_json(content: bytes, name: object) -> dict[str, Any]:
    """Return the JSON object of a file's content.

    Args:
        content: the file's bytes.
        name: path of the file, for messages.

    Raises:
        CacheCorruptError: if it does not hold a JSON object.
    """
    try:
        found = json.loads(content)
    except ValueError as error:
        raise CacheCorruptError(f"{name} is not readable as JSON: {error}") from error
    if not isinstance(found, dict):
        raise CacheCorruptError(f"{name} holds {type(found).__name__}, expected a JSON object")
    return found


def read_npz(content: bytes) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of an npz file by name; pickled objects are refused.

    Raises:
        CacheCorruptError: if the content is not a readable npz file.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # zipfile, zlib and numpy raise almost anything
        raise CacheCorruptError(f"{type(error).__name__}: {error}") from error


def sha256_of(path: Path) -> str:
    """Return the hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
