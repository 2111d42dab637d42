"""What kdcache does in its folders: write, flush, rename, lock and map files."""

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
"""The walk on the digits was measured to write 0.5 GB, with a resnet50 as the teacher."""

_CONTENT = bytes(range(256)) * 4096
_ELSEWHERE = "choose a folder on another disk: --workspace FOLDER"


def check_workspace(workspace: Path) -> Iterator[Finding]:
    """Work in a folder inside the workspace, or where it would be made; nothing is left there."""
    yield _check_temporary_files()
    place = workspace
    while not os.path.lexists(place):
        place = place.parent
    try:
        scratch = Path(tempfile.mkdtemp(prefix=".kdcache-doctor-", dir=place))
    except OSError as failure:
        remedy = "choose a folder that you may write to: --workspace FOLDER"
        yield error("workspace", f"no folder can be made in {place}: {reason(failure)}", remedy)
        return
    try:
        failed = list(_failures(scratch))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    yield from failed
    if not failed:
        yield ok("workspace", f"files can be written, flushed, renamed, locked, mapped in {place}")
    yield _check_space(place)


def _failures(scratch: Path) -> Iterator[Finding]:
    """Try each operation, and yield those that fail; one that fails does not hide another."""
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
            found = f"in {scratch.parent} no file can be {name}: {reason(failure)}"
            yield error(f"workspace: {name}", found, _ELSEWHERE)


def _write(scratch: Path) -> None:
    with (scratch / "written").open("wb") as file:
        file.write(_CONTENT)
        file.flush()
        os.fsync(file.fileno())
    if (scratch / "written").read_bytes() != _CONTENT:
        raise OSError("other bytes are read than were written")


def _rename(scratch: Path) -> None:
    path = scratch / "renamed"
    for content in (b"old", b"new"):  # the second replaces the first
        (scratch / "partial").write_bytes(content)
        (scratch / "partial").replace(path)
    if path.read_bytes() != b"new":
        raise OSError("the old file is still there")


def _lock(scratch: Path) -> None:
    path = scratch / "lock"
    with file_lock(path, purpose="check"):
        try:
            with file_lock(path, purpose="check"):
                pass
        except KDCacheError:  # held, as it should be
            return
    raise OSError("one lock was given twice at the same time")


def _map(scratch: Path) -> None:
    (scratch / "mapped").write_bytes(_CONTENT)
    if not np.array_equal(np.memmap(scratch / "mapped", np.uint8, "r")[:256], np.arange(256)):
        raise OSError("other bytes are mapped than were written")


def _check_space(place: Path) -> Finding:
    free = shutil.disk_usage(place).free
    found = f"{free / 1e9:,.1f} GB free in {place}"
    if free >= MIN_FREE_BYTES:
        return ok("disk", found)
    found = f"{found}, the walk on the digits may take {MIN_FREE_BYTES / 1e9:,.1f} GB"
    return error("disk", found, f"make room, or {_ELSEWHERE}")


def _check_temporary_files() -> Finding:
    try:
        with tempfile.NamedTemporaryFile(prefix="kdcache-doctor-") as file:
            file.write(_CONTENT)
            file.flush()
    except OSError as failure:
        found = f"no temporary file can be written: {reason(failure)}"
        return error("temporary files", found, "name a folder that you may write to: TMPDIR=FOLDER")
    return ok("temporary files", f"can be written in {tempfile.gettempdir()}")
