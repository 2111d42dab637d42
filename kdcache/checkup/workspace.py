"""Check that files of the workspace can be written, flushed, renamed, locked and mapped."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from kdcache.checkup.finding import Finding, error, ok, reason
from kdcache.errors import KDCacheError
from kdcache.files import sync_directory
from kdcache.locks import file_lock

MIN_FREE_BYTES = 1 << 30
"""The digits example writes 0.5 GB with resnet50 as the teacher (measured)."""

_CONTENT = bytes(range(256)) * 4096
_ELSEWHERE = "choose a folder on another disk: --workspace FOLDER"


def check_workspace(workspace: Path) -> Iterator[Finding]:
    """Try each operation in a temporary folder in the workspace, which is removed afterwards.

    If the workspace does not exist, the nearest existing parent folder is tested.
    """
    yield _check_temporary_files()
    folder = workspace
    while not os.path.lexists(folder):
        folder = folder.parent
    try:
        scratch = Path(tempfile.mkdtemp(prefix=".kdcache-doctor-", dir=folder))
    except OSError as failure:
        remedy = "choose a writable folder: --workspace FOLDER"
        yield error(
            "workspace", f"a folder cannot be created in {folder}: {reason(failure)}", remedy
        )
        return
    try:
        failed = list(_failures(scratch))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    yield from failed
    if not failed:
        yield ok("workspace", f"files can be written, flushed, renamed, locked, mapped in {folder}")
    yield _check_space(folder)


def _failures(scratch: Path) -> Iterator[Finding]:
    """Try each operation and yield the failures; one failure does not hide another."""
    steps: tuple[tuple[str, Callable[[Path], None]], ...] = (
        ("written and flushed", _write),
        ("renamed", _rename),
        ("flushed with its folder", sync_directory),
        ("locked", _lock),
        ("mapped into memory", _map),
    )
    for name, operation in steps:
        try:
            operation(scratch)
        except (OSError, KDCacheError) as failure:
            found = f"a file in {scratch.parent} cannot be {name}: {reason(failure)}"
            yield error(f"workspace: {name}", found, _ELSEWHERE)


def _write(scratch: Path) -> None:
    with (scratch / "written").open("wb") as file:
        file.write(_CONTENT)
        file.flush()
        os.fsync(file.fileno())
    if (scratch / "written").read_bytes() != _CONTENT:
        raise OSError("the bytes read differ from those written")


def _rename(scratch: Path) -> None:
    path = scratch / "renamed"
    for content in (b"old", b"new"):  # the second replaces the first
        (scratch / "partial").write_bytes(content)
        (scratch / "partial").replace(path)
    if path.read_bytes() != b"new":
        raise OSError("the old file was not replaced")


def _lock(scratch: Path) -> None:
    path = scratch / "lock"
    with file_lock(path, purpose="check"):
        try:
            with file_lock(path, purpose="check"):
                pass
        except KDCacheError:  # the lock is held, as it should be
            return
    raise OSError("two holders got the same lock")


def _map(scratch: Path) -> None:
    (scratch / "mapped").write_bytes(_CONTENT)
    if not np.array_equal(np.memmap(scratch / "mapped", np.uint8, "r")[:256], np.arange(256)):
        raise OSError("the mapped bytes differ from those written")


def _check_space(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    found = f"{free / 1e9:,.1f} GB free in {folder}"
    if free >= MIN_FREE_BYTES:
        return ok("disk", found)
    found = f"{found}, expected at least {MIN_FREE_BYTES / 1e9:,.1f} GB, for the digits example"
    return error("disk", found, f"free some space, or {_ELSEWHERE}")


def _check_temporary_files() -> Finding:
    try:
        with tempfile.NamedTemporaryFile(prefix="kdcache-doctor-") as file:
            file.write(_CONTENT)
            file.flush()
    except OSError as failure:
        found = f"a temporary file cannot be written: {reason(failure)}"
        return error("temporary files", found, "set TMPDIR to a writable folder: TMPDIR=FOLDER")
    return ok("temporary files", f"can be written in {tempfile.gettempdir()}")
