"""What a process may take."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from kdcache.memory import available_bytes, default_budget_bytes

MACHINE = psutil.virtual_memory().total


def test_without_a_limit_it_is_the_machines_memory(tmp_path):
    assert available_bytes(mount=tmp_path, membership=tmp_path / "none") == MACHINE


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [("max\n", MACHINE), ("1073741824\n", 1 << 30), ("9223372036854771712\n", MACHINE)],
)
def test_a_containers_limit_counts_where_it_is_less(tmp_path, name, text, expected):
    (tmp_path / "memory").mkdir()
    (tmp_path / name).write_text(text)
    assert available_bytes(mount=tmp_path, membership=tmp_path / "none") == expected


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("0::/slurm/job_7/step_0", "slurm/job_7/memory.max"),
        ("0::/slurm/job_7/step_0", "slurm/job_7/step_0/memory.max"),
        ("4:cpu,memory:/slurm/job_7", "memory/slurm/job_7/memory.limit_in_bytes"),
    ],
)
def test_the_limit_of_the_own_group_or_of_one_above_it_counts(tmp_path, line, path):
    (membership := tmp_path / "cgroup").write_text(f"{line}\n")
    limit: Path = tmp_path / path
    limit.parent.mkdir(parents=True)
    limit.write_text("1073741824\n")
    assert available_bytes(mount=tmp_path, membership=membership) == 1 << 30


def test_the_limit_of_another_group_does_not_count(tmp_path):
    (membership := tmp_path / "cgroup").write_text("0::/slurm/job_7\n3:cpuset:/\n")
    for path in ("slurm/job_8/memory.max", "memory/memory.limit_in_bytes"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text("1073741824\n")
    assert available_bytes(mount=tmp_path, membership=membership) == MACHINE


def test_half_of_it_is_for_buffers_and_rows():
    assert default_budget_bytes() == available_bytes() // 2
