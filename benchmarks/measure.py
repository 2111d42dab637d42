"""Timing for benchmarks: interleaved repeats, a check for equal work, and the environment."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from kdcache.cores import available_cores

RESULTS = Path(__file__).parent / "results"


def start_as_the_command_line_does() -> None:
    """Restart this script with the environment variable that `kdcache` sets before it loads torch.

    Call this function first. If the user has set the variable, nothing happens.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606


class Work(NamedTuple):
    """The work of one run of an arm."""

    num_images: int
    checksum: int
    """Sum of the sample ids, which shows that the arms did equal work."""


class Measured(NamedTuple):
    """The measurements of an arm."""

    images_per_second: float
    """Median over the repeats."""
    spread: float
    """(max - min) / median of the seconds of the repeats."""
    cpu_ms_per_image: float
    """Median CPU time of this process and its children. On a shared machine, it varies less than
    the wall time."""
    seconds: list[float]
    """Wall time of each repeat."""
    num_images: int
    checksum: int


def measure(
    arms: Mapping[str, Callable[[], Work]], *, repeats: int, warm_ups: int = 1
) -> dict[str, Measured]:
    """Time every arm. The arms take turns, so that a temporary load affects all of them.

    Args:
        arms: name -> function that does the work once.
        repeats: number of timed runs of each arm.
        warm_ups: number of untimed runs of each arm before.

    Raises:
        ValueError: if the arms do not do equal work.
    """
    for run in arms.values():
        for _ in range(warm_ups):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in arms}
    work: dict[str, Work] = {}
    for _ in range(repeats):
        for name, run in arms.items():
            _synchronise()
            cpu_before, before = _cpu_seconds(), time.perf_counter()
            done = run()
            _synchronise()
            seconds[name].append(time.perf_counter() - before)
            cpu_seconds[name].append(_cpu_seconds() - cpu_before)
            if done != work.setdefault(next(iter(arms)), done):
                raise ValueError(f"arm {name} did {done}, expected {work[next(iter(arms))]}")
    (done,) = set(work.values())
    return {
        name: Measured(
            images_per_second=done.num_images / statistics.median(seconds[name]),
            spread=(max(seconds[name]) - min(seconds[name])) / statistics.median(seconds[name]),
            cpu_ms_per_image=1000 * statistics.median(cpu_seconds[name]) / done.num_images,
            seconds=[round(value, 4) for value in seconds[name]],
            num_images=done.num_images,
            checksum=done.checksum,
        )
        for name in arms
    }


def environment() -> dict[str, Any]:
    """Return the machine, the versions of packages, and the commit."""
    packages = ("kdcache", "torch", "torchvision", "ffcv", "numba", "numpy", "zarr")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _git("rev-parse", "--short", "HEAD") or "unknown",
        "dirty": _git("status", "--porcelain", "--untracked-files=no") != "",
        "cpu": _cpu_model(),
        "cores": available_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
        "torch_threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
    }


def record(name: str, content: Mapping[str, Any], *, folder: Path = RESULTS) -> Path:
    """Write a result to a new file, named after benchmark, machine, date and commit."""
    where = environment()
    device = where["gpu"] or where["cpu"]
    machine = re.sub(r"[^a-z0-9]+", "-", f"{device} {where['cores']}c".lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{name}_{machine}_{where['date']}_{where['commit']}"
    path = folder / f"{stem}.json"
    for number in count(2):
        if not path.exists():  # an existing record is never replaced
            break
        path = folder / f"{stem}_{number}.json"
    path.write_text(json.dumps({"environment": where, **content}, indent=1) + "\n")
    return path


def print_table(measured: Mapping[str, Measured]) -> None:
    """Print one line for each arm."""
    print(f"{'arm':28}{'images/s':>12}{'spread':>9}{'CPU ms/image':>15}")
    for name, arm in measured.items():
        print(
            f"{name:28}{arm.images_per_second:>12,.1f}{arm.spread:>9.1%}{arm.cpu_ms_per_image:>15.3f}"
        )


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _cpu_seconds() -> float:
    """Return the CPU time of this process and of its running and ended children."""
    ended = os.times()
    total = time.process_time() + ended.children_user + ended.children_system
    for worker in psutil.Process().children(recursive=True):
        used = worker.cpu_times()
        total += used.user + used.system
    return total


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _git(*arguments: str) -> str:
    process = subprocess.run(
        ["git", *arguments],  # noqa: S607  (the user's git)
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return process.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
