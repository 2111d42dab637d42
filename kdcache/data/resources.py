"""Check memory, shared memory and disk before a pack starts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

from kdcache.cgroups import MEMBERSHIP, MOUNT, group_folders
from kdcache.errors import DatasetError

WORKER_BYTES = 350 << 20
"""Memory of one worker process. Measured peaks, with a row group of parquet: 132 MB for raw images,
357 MB for JPEGs, for which numba is loaded."""

DECODING_FACTOR = 4
"""Copies of one decoded image in memory at once: Pillow's, the rotated or resized one, the raw one
and the message to the writer."""

SAMPLE_BYTES = 160
"""Memory of one sample in the tables, which are written at the end."""

_SHARED_BYTES = 1 << 20
_DISK_TOLERANCE = 0.8
"""Fraction of the estimate that must be free: the estimate comes from a few images."""


class ResourceEstimate(NamedTuple):
    """Estimated needs of a pack in bytes, from a few of its images."""

    samples: int
    stored: int
    """Mean size of one image in the beton."""
    decoded: int
    """Size of the largest image as RGB."""
    split: int
    """Size of the list of images, of which each worker holds a copy."""
    queue: int
    """Size of the finished images that wait to be written, per worker."""
    reader: int = 0
    """Size of what a worker holds to read images, such as a batch of Parquet rows."""

    def memory(self, workers: int) -> int:
        """Return the bytes of memory that a pack with this number of workers takes."""
        worker = WORKER_BYTES + DECODING_FACTOR * self.decoded + self.split + self.queue
        worker += self.reader
        return self.samples * SAMPLE_BYTES + self.split + workers * worker


def require_resources(need: ResourceEstimate, workers: int, folder: Path) -> None:
    """Check that there is enough memory and disk for a pack.

    Args:
        need: estimate for the pack.
        workers: number of processes that decode.
        folder: folder of the beton.

    Raises:
        DatasetError: if there is too little; names the amounts and a remedy.
    """
    require_memory(need, workers, available_memory())
    require_shared_memory()
    require_disk(need, folder, shutil.disk_usage(folder).free)


def require_memory(need: ResourceEstimate, workers: int, available: int) -> None:
    """Check the memory; the error names the number of workers that would fit."""
    if need.memory(workers) <= available:
        return
    fewer = max((n for n in range(1, workers) if need.memory(n) <= available), default=None)
    remedy = f"Use --num-workers {fewer}" if fewer else "Shrink images with --max-resolution"
    raise DatasetError(
        f"packing with {workers} workers takes about {_gigabytes(need.memory(workers))} of memory, "
        f"expected at most the {_gigabytes(available)} that are free. {remedy}"
    )


def require_shared_memory(folder: Path = Path("/dev/shm")) -> None:  # noqa: S108
    """Check the folder of the semaphores that synchronise the worker processes."""
    if not os.access(folder, os.W_OK):
        raise DatasetError(
            f"{folder} is missing or read-only, expected a folder for the semaphores of worker "
            "processes. Mount it: mount -t tmpfs tmpfs /dev/shm"
        )
    if (free := shutil.disk_usage(folder).free) < _SHARED_BYTES:
        raise DatasetError(
            f"{folder} has {free:,} bytes free, expected at least {_SHARED_BYTES:,} for the "
            "semaphores of worker processes. Remove what fills it, or give a container more "
            "(docker run --shm-size 1g)"
        )


def require_disk(need: ResourceEstimate, folder: Path, free: int) -> None:
    """Check the free space of the disk that the beton is written to."""
    stored = need.samples * need.stored
    if _DISK_TOLERANCE * stored > free:
        raise DatasetError(
            f"the beton takes about {_gigabytes(stored)}, expected at most the {_gigabytes(free)} "
            f"that are free in {folder}. Use another --workspace, or --max-resolution"
        )


def available_memory(
    meminfo: Path = Path("/proc/meminfo"), cgroup: Path = MOUNT, membership: Path = MEMBERSHIP
) -> int:
    """Return the memory that this process can still take, in bytes, within its control groups."""
    lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
    available = int(lines["MemAvailable"].split()[0]) << 10
    for folder in group_folders("memory", mount=cgroup, membership=membership):
        try:
            limit = int((folder / "memory.max").read_text(encoding="ascii"))
            used = int((folder / "memory.current").read_text(encoding="ascii"))
            stat = (folder / "memory.stat").read_text(encoding="ascii").split()
        except (OSError, ValueError):  # no group of version 2, or one without a limit
            continue
        cached = int(stat[stat.index("inactive_file") + 1])  # the kernel frees it on demand
        available = min(available, limit - used + cached)
    return available


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"
