"""How many cores a process may use, by its affinity and its control groups."""

from __future__ import annotations

import os
import subprocess
import sys
from math import inf
from pathlib import Path

import pytest

from kdcache.cores import available_cores, cores_of_affinity, cores_of_control_groups


def with_limit(folder: Path, *files: tuple[str, str]) -> dict[str, Path]:
    """Write files of control groups; return the arguments that read them."""
    for name, text in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text + "\n")
    return {"mount": folder, "membership": folder / "cgroup"}


def test_without_a_limit_it_is_the_affinity(tmp_path):
    nowhere = with_limit(tmp_path)
    assert cores_of_control_groups(**nowhere) == inf
    assert available_cores(**nowhere) == cores_of_affinity() == len(os.sched_getaffinity(0))


def test_the_affinity_of_this_process_counts_and_not_the_machine():
    one = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
    code = f"{one}; from kdcache.cores import available_cores; print(available_cores())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([("cpu.max", "150000 100000")], 1.5),
        ([("cpu.max", "max 100000")], inf),
        ([("cpu/cpu.cfs_quota_us", "50000"), ("cpu/cpu.cfs_period_us", "100000")], 0.5),
        ([("cpu/cpu.cfs_quota_us", "-1"), ("cpu/cpu.cfs_period_us", "100000")], inf),
        # Its own group allows more than the one above it.
        (
            [
                ("cgroup", "0::/slurm/job_7"),
                ("slurm/cpu.max", "300000 100000"),
                ("slurm/job_7/cpu.max", "800000 100000"),
            ],
            3.0,
        ),
        (
            [
                ("cgroup", "5:cpu,cpuacct:/docker/1"),
                ("cpu/docker/1/cpu.cfs_quota_us", "40000"),
                ("cpu/docker/1/cpu.cfs_period_us", "20000"),
            ],
            2.0,
        ),
        # The path of a container's group on its host, which is not there inside.
        ([("cgroup", "0::/../../docker/1"), ("cpu.max", "100000 100000")], 1.0),
        ([("cgroup", "0::/job_7"), ("job_8/cpu.max", "100000 100000")], inf),
    ],
    ids=str,
)
def test_the_control_groups_allow(tmp_path, files, expected):
    assert cores_of_control_groups(**with_limit(tmp_path, *files)) == expected


@pytest.mark.parametrize(("quota", "expected"), [(20_000, 1), (100_000, 1), (110_000, 2)])
def test_a_part_of_a_core_counts_as_one(tmp_path, quota, expected):
    limited = with_limit(tmp_path, ("cpu.max", f"{quota} 100000"))
    assert available_cores(**limited) == min(expected, cores_of_affinity())
