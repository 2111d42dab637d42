"""Check the limits of this machine: cores, memory, shared memory and open files."""

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
"""The digits example needs this much: with resnet50 as the teacher, its largest process took 1.6 GB
on a CPU (measured)."""

WANTED_FILES = 4096
MIN_OPEN_FILES = 50
"""The digits example runs with a limit of 64 (measured), some of which Python itself uses."""

_SHM = Path("/dev/shm")  # noqa: S108  (the path is fixed)


def check_machine(_workspace: Path) -> Iterator[Finding]:
    """Check everything that depends on neither the workspace nor a library."""
    python = f"kdcache {__version__}, Python {platform.python_version()}, {platform.platform()}"
    yield ok("system", python)
    yield check_cores()
    yield check_memory()
    yield check_shared_memory()
    yield check_open_files()


def check_cores(*, mount: Path = MOUNT, membership: Path = MEMBERSHIP) -> Finding:
    """Report the number of cores that kdcache will use.

    Args:
        mount: where control groups are mounted.
        membership: the file that lists the control groups of this process.
    """
    cores = available_cores(mount=mount, membership=membership)
    affinity = cores_of_affinity()
    allowed = cores_of_control_groups(mount=mount, membership=membership)
    limit = "no limit" if math.isinf(allowed) else f"{allowed:g}"
    found = f"{cores} (affinity {affinity}, control group {limit}, machine {os.cpu_count()})"
    if allowed < affinity and "OMP_NUM_THREADS" not in os.environ:
        # torch starts one thread per core of the affinity mask and ignores the control group.
        return note("cores", found, f"set OMP_NUM_THREADS={cores}: torch would use {affinity}")
    return ok("cores", found)


def check_memory(
    *,
    meminfo: Path = Path("/proc/meminfo"),
    mount: Path = MOUNT,
    membership: Path = MEMBERSHIP,
) -> Finding:
    """Check how much memory is left on the machine and in the control groups.

    Args:
        meminfo: the kernel's file of memory figures.
        mount: where control groups are mounted.
        membership: the file that lists the control groups of this process.
    """
    free = available_memory(meminfo, mount, membership)
    found = f"{free / 1e9:,.1f} GB free"
    if free >= MIN_MEMORY_BYTES:
        return ok("memory", found)
    return error(
        "memory",
        f"{found}, expected at least {MIN_MEMORY_BYTES / 1e9:,.1f} GB, for the digits example",
        "close other programs, or give the container more (docker run --memory 4g)",
    )


def check_shared_memory(folder: Path = _SHM) -> Finding:
    """Create a semaphore such as worker processes share.

    Args:
        folder: where shared memory is mounted.
    """
    try:
        require_shared_memory(folder)
        multiprocessing.get_context("spawn").Lock()
    except DatasetError as failure:
        found, _, remedy = str(failure).rpartition(". ")
        return error("shared memory", found, remedy[:1].lower() + remedy[1:])
    except OSError as failure:
        remedy = f"mount {folder}: mount -t tmpfs tmpfs {folder}"
        return error("shared memory", f"a semaphore cannot be created: {reason(failure)}", remedy)
    usage = os.statvfs(folder)
    return ok("shared memory", f"{usage.f_bavail * usage.f_frsize / 1e9:,.1f} GB free in {folder}")


def check_open_files(count: int = WANTED_FILES) -> Finding:
    """Open `count` files at once, or as many as the limit allows."""
    opened: list[int] = []
    try:
        while len(opened) < count:
            opened.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as failure:
        found = f"{len(opened):,} of {count:,} files could be opened: {reason(failure)}"
        remedy = f"run: ulimit -n {count}"
        make = error if len(opened) < MIN_OPEN_FILES else note
        return make("open files", found, remedy)
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return ok("open files", f"{count:,} opened at once")
