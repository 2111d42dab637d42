"""Count the processor cores that this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

from kdcache.cgroups import MEMBERSHIP, MOUNT, group_folders, read_limit


def available_cores(*, mount: Path = MOUNT, membership: Path = MEMBERSHIP) -> int:
    """Return the cores that this process may run on at once, at least 1.

    They are bounded by the process's affinity (taskset, Slurm, Docker's --cpuset-cpus) and by the
    time that its control groups allow (Docker's --cpus, Kubernetes), rounded up: one and a half
    cores keep two threads busy for three quarters of the time.

    Args:
        mount: where control groups are mounted.
        membership: the file that lists the control groups of this process.
    """
    allowed = cores_of_control_groups(mount=mount, membership=membership)
    return max(1, min(cores_of_affinity(), math.ceil(min(allowed, 2**31))))


def cores_of_affinity() -> int:
    """Return the cores that the kernel may put this process on."""
    return len(os.sched_getaffinity(0))


def cores_of_control_groups(*, mount: Path = MOUNT, membership: Path = MEMBERSHIP) -> float:
    """Return the cores whose time the control groups allow, infinity where they set no limit."""
    found = [math.inf]
    for folder in group_folders("cpu", mount=mount, membership=membership):
        # Microseconds that may be used, and the period after which they are renewed.
        version_1 = [read_limit(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
        for limit in (read_limit(folder / "cpu.max").split(), version_1):
            if all(text.isdigit() for text in limit):  # "max" or -1 if there is no limit
                quota, period = map(int, limit)
                found.append(quota / period)
    return min(found)
