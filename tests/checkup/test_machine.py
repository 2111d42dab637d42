"""Cores, memory, shared memory and open files, each made scarce in turn."""

from __future__ import annotations

import resource

import pytest

from kdcache.checkup.machine import (
    MIN_MEMORY_BYTES,
    check_cores,
    check_memory,
    check_shared_memory,
)
from kdcache.cores import cores_of_affinity
from tests.checkup.processes import check


def test_this_machine_has_no_errors(tmp_path):
    found = check("machine", tmp_path)
    assert {finding.level for finding in found.values()} <= {"ok", "note"}
    assert found.keys() == {"system", "cores", "memory", "shared memory", "open files"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("most", "level"), [(5000, "ok"), (4000, "note"), (64, "note"), (48, "error")]
)
def test_the_number_of_open_files_is_compared_with_the_limit(tmp_path, most, level):
    (_, allowed) = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most > allowed:
        pytest.skip(f"needs {most} open files, {allowed} are allowed")
    found = check("machine", tmp_path, limits={resource.RLIMIT_NOFILE: most})["open files"]
    assert found.level == level
    if level != "ok":
        assert found.remedy == "run: ulimit -n 4096"
        assert "Too many open files" in found.found
        opened = int(found.found.split(" of ")[0].replace(",", ""))
        assert most - 20 < opened < most


def test_cores_are_limited_by_affinity_and_control_group(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    alone = check_cores(mount=tmp_path, membership=tmp_path / "none")
    assert alone.level == "ok"
    assert f"affinity {cores_of_affinity()}, control group no limit" in alone.found
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    limited = check_cores(mount=tmp_path, membership=tmp_path / "none")
    assert limited.found.startswith("1 (")
    assert "control group 0.5" in limited.found
    assert (limited.level, limited.remedy[:21]) == ("note", "set OMP_NUM_THREADS=1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert check_cores(mount=tmp_path, membership=tmp_path / "none").level == "ok"


@pytest.mark.parametrize(("missing", "level"), [(0, "ok"), (1, "error")])
@pytest.mark.parametrize("by", ["machine", "control group"])
def test_too_little_memory_is_an_error(tmp_path, missing, level, by):
    nowhere = tmp_path / "none"
    free = MIN_MEMORY_BYTES - 1024 * missing
    of_machine = free if by == "machine" else 1 << 40
    (tmp_path / "meminfo").write_text(f"MemAvailable: {of_machine >> 10} kB\n")
    if by == "control group":
        (tmp_path / "memory.max").write_text(f"{free + 4096}\n")
        (tmp_path / "memory.current").write_text("4096\n")
        (tmp_path / "memory.stat").write_text("inactive_file 0\n")
    found = check_memory(meminfo=tmp_path / "meminfo", mount=tmp_path, membership=nowhere)
    assert found.level == level
    assert found.remedy is None or "--memory" in found.remedy


def test_no_shared_memory_is_an_error(tmp_path):
    found = check_shared_memory(tmp_path / "none")
    assert found.level == "error"
    assert f"{tmp_path / 'none'} is missing or read-only" in found.found
    assert found.remedy == "mount it: mount -t tmpfs tmpfs /dev/shm"


@pytest.mark.parametrize(
    ("options", "word"), [("ro", "read-only"), ("size=4k", "4,096 bytes free")], ids=str
)
def test_unusable_shared_memory_is_an_error(tmp_path, options, word):
    mounts = [f"mount -t tmpfs -o {options} tmpfs /dev/shm"]
    found = check("machine", tmp_path, mounts=mounts)["shared memory"]
    assert found.level == "error"
    assert word in found.found
    assert found.remedy
