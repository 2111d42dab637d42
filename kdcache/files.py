"""Files that appear complete or not at all, their digests, and a lock that dies with its holder."""

from __future__ import annotations

import fcntl
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

from kdcache.errors import CacheCorruptError, KDCacheError


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
    """Return what tells this process from others, on this machine and beyond; without a dot."""
    return f"{os.getpid()}@{platform.node()}".replace(".", "-")


def sweep_partials(directory: Path, *, recursive: bool = False) -> None:
    """Remove what processes that no longer run left half-written in `directory`.

    What processes of other machines write stays: whether they run is not known here.
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
        FileNotFoundError: if the file is not there.
        CacheCorruptError: if it does not hold a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CacheCorruptError(f"{path} is not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CacheCorruptError(f"{path} holds {type(content).__name__}, expected a JSON object")
    return content


def arrays_of_npz(content: bytes) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of an npz file by name; nothing in it is ever unpickled.

    Raises:
        CacheCorruptError: if it is none.
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


@contextmanager
def file_lock(
    path: Path, *, purpose: str, shared: bool = False, wait: bool = False
) -> Iterator[int]:
    """Hold the lock file `path`; the kernel releases it when this process ends, however it ends.

    Yields its file descriptor: a child process that inherits it holds the lock too.

    Args:
        path: of the lock file.
        purpose: named to those who find it held.
        shared: others may hold it too, if they share it.
        wait: until it is free, instead of raising.

    Raises:
        KDCacheError: if another process holds it; names that process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise KDCacheError(
                f"{path} is held by {holder}, expected one {purpose} at a time. "
                "Wait for it to end, or end it."
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} ({purpose})")
        file.flush()
        # The file stays: unlinking it would let two processes lock two files of one name.
        yield file.fileno()


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return every wanted key whose value is another in `found`, with both values; "" for none."""
    return "; ".join(
        f"{key} is {value!r}, there {found.get(key)!r}"
        for key, value in wanted.items()
        if found.get(key) != value
    )
