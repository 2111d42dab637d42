"""What this machine and its limits give a process: cores, memory, shared memory, open files."""

from __future__ import annotations

import math
import multiprocessing
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from kdcache import __version__
from kdcache.cgroups import MEMBERSHIP, MOUNT
from kdcache.checkup.finding import Finding, error, note, ok, reason
from kdcache.cores import available_cores, cores_of_affinity, cores_of_control_groups
from kdcache.data.resources import available_memory, require_shared_memory
from kdcache.errors import DatasetError

MIN_MEMORY_BYTES = 1536 << 20
"""Of the walk on the digits: with a resnet50 as the teacher, its largest process was measured to
take 1.6 GB, on a processor."""

WANTED_FILES = 4096
MIN_OPEN_FILES = 50
"""The walk on the digits was run with a limit of 64, of which a process of Python has some open."""

_SHM = Path("/dev/shm")  # noqa: S108  (its place is fixed)


def check_machine(_workspace: Path) -> Iterator[Finding]:
    """Check everything that does not depend on a folder or a library."""
    python = f"kdcache {__version__}, Python {platform.python_version()}, {platform.platform()}"
    yield ok("system", python)
    yield check_cores()
    yield check_memory()
    yield check_shared_memory()
    yield check_open_files()


def check_cores(*, mount: Path = MOUNT, membership: Path = MEMBERSHIP) -> Finding:
    """Count the cores that kdcache will use.

    Args:
        mount: where control groups are mounted.
        membership: the file that says which groups this process is in.
    """
    cores = available_cores(mount=mount, membership=membership)
    affinity = cores_of_affinity()
    allowed = cores_of_control_groups(mount=mount, membership=membership)
    limit = "no limit" if math.isinf(allowed) else f"{allowed:g}"
    found = f"{cores} (affinity {affinity}, control group {limit}, machine {os.cpu_count()})"
    if allowed < affinity and "OMP_NUM_THREADS" not in os.environ:
        # torch starts a thread for each core of the affinity, whatever time they get.
        return note("cores", found, f"say OMP_NUM_THREADS={cores}, because torch counts {affinity}")
    return ok("cores", found)


def check_memory(
    *,
    meminfo: Path = Path("/proc/meminfo"),
    mount: Path = MOUNT,
    membership: Path = MEMBERSHIP,
) -> Finding:
    """Ask how much memory is left on the machine and in the control groups.

    Args:
        meminfo: the kernel's file.
        mount: where control groups are mounted.
        membership: the file that says which groups this process is in.
    """
    free = available_memory(meminfo, mount, membership)
    found = f"{free / 1e9:,.1f} GB free"
    if free >= MIN_MEMORY_BYTES:
        return ok("memory", found)
    return error(
        "memory",
        f"{found}, the walk on the digits takes {MIN_MEMORY_BYTES / 1e9:,.1f} GB",
        "end other programs, or give the container more (docker run --memory 4g)",
    )


def check_shared_memory(folder: Path = _SHM) -> Finding:
    """Make a semaphore as worker processes share it."""
    try:
        require_shared_memory(folder)
        multiprocessing.get_context("spawn").Lock()
    except DatasetError as failure:
        found, _, remedy = str(failure).rpartition(". ")
        return error("shared memory", found, remedy[:1].lower() + remedy[1:])
    except OSError as failure:
        remedy = f"mount {folder}: mount -t tmpfs tmpfs {folder}"
        return error("shared memory", f"no semaphore can be made: {reason(failure)}", remedy)
    usage = os.statvfs(folder)
    return ok("shared memory", f"{usage.f_bavail * usage.f_frsize / 1e9:,.1f} GB free in {folder}")


def check_open_files(count: int = WANTED_FILES) -> Finding:
    """Open files until there are enough of them, or no more can be opened."""
    opened: list[int] = []
    try:
        while len(opened) < count:
            opened.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as failure:
        found = f"{len(opened):,} of {count:,} could be opened: {reason(failure)}"
        remedy = f"run: ulimit -n {count}"
        make = error if len(opened) < MIN_OPEN_FILES else note
        return make("open files", found, remedy)
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return ok("open files", f"{count:,} opened at once")
