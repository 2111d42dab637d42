"""Whole studies of real students on digits: killed, divided into parts, and on a full disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdcache.data.digits import digits
from kdcache.studies.results import Results
from kdcache.studies.variant import noisy_labels, write_variant
from tests.conftest import ROOT, kdcache
from tests.workspaces import copy_workspace

pytestmark = pytest.mark.timeout(3_000)  # a dozen processes on a machine that may be busy

GRID = """
[teachers.big]
model = "resnet8"
epochs = 2
batch_size = 128

[teachers.early]
of = "big"
epoch = 1

[defaults]
data = "digits"
teacher = "big"
recipe = "2 epochs"
keep = 0.3
batch_size = 64
views = 1

[[block]]
name = "teachers"
priority = 0
make = ["big"]

[[block]]
name = "students"
priority = 1
kd = [false, true]

[[block]]
name = "diverges"
priority = 2
lr = 1e30

[[block]]
name = "early"
priority = 3
method = "medium"
teacher = "early"
"""

DECIDED = [
    *("cell", "kind", "status", "error", "top1_last", "top1_best", "top5_last", "samples", "steps"),
    *("student_forwards", "data_digest", "subset_digest", "teacher_digest", "store_digest"),
]
"""Columns in which no time stands."""


def study(grid: Path, workspace: Path, *arguments: str) -> dict[str, Any]:
    done = kdcache("study", str(grid), "--json", *arguments, workspace=workspace, timeout=1_500)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def decided(path: Path) -> list[list[Any]]:
    return sorted([row[name] for name in DECIDED] for row in Results(path).rows())


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("grid") / "small.toml"
    path.write_text(GRID)
    return path


@pytest.fixture(scope="module")
def studied(grid: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the blocks `teachers` and `students` done. Read only."""
    workspace = tmp_path_factory.mktemp("studied")
    found = study(grid, workspace, "--block", "teachers", "--block", "students")
    assert (found["cells"], found["trained"], found["left"]) == (2, 2, 0)
    return workspace


def test_every_student_and_teacher_has_a_row(studied):
    rows = Results(studied / "studies/small.parquet").rows()
    assert [(row["kind"], row["kd"], row["status"]) for row in rows] == [
        ("teacher", None, "ok"),
        ("student", False, "ok"),
        ("student", True, "ok"),
    ]
    teacher, labels, taught = rows
    assert teacher["teacher_digest"] == taught["teacher_digest"] is not None
    assert len({row["data_digest"] for row in rows}) == 1
    assert labels["subset_digest"] == taught["subset_digest"]  # of one seed the same samples
    assert (labels["store_digest"], len(taught["store_digest"])) == (None, 64)
    assert (taught["samples"], taught["steps"], taught["student_forwards"]) == (431, 14, 862)
    assert taught["processor_seconds"] > 0
    assert not list(studied.glob("studies/digits/runs/[0-9a-f]*/*.safetensors"))


def test_students_in_the_results_are_not_trained_again_in_a_new_workspace(studied, grid, tmp_path):
    """As on another machine: only the committed file is there."""
    path = tmp_path / "committed.parquet"
    path.write_bytes((studied / "studies/small.parquet").read_bytes())
    arguments = ("--results", str(path), "--block", "teachers", "--block", "students")
    found = study(grid, tmp_path / "fresh", *arguments)
    assert (found["cells"], found["trained"]) == (2, 0)
    assert not (tmp_path / "fresh/studies/digits").exists()


def test_a_failed_student_is_recorded_and_skipped(studied, grid, tmp_path):
    workspace = copy_workspace(studied, tmp_path / "copy")
    found = study(grid, workspace, "--block", "diverges")
    assert (found["trained"], found["failed"], found["left"]) == (0, 1, 0)
    row = Results(workspace / "studies/small.parquet").rows()[-1]
    assert row["status"] == "failed"
    assert "expected a finite number" in row["error"]
    again = study(grid, workspace, "--block", "diverges")
    assert (again["trained"], again["failed"]) == (0, 0)
    retried = study(grid, workspace, "--block", "diverges", "--retry")
    assert (retried["trained"], retried["failed"]) == (0, 1)


def test_a_table_compares_students_of_one_seed(studied, grid):
    arguments = ("--block", "students", "--table", "kd", "keep")
    found = study(grid, studied, *arguments)
    labels, taught = found["arms"]
    rows = {
        row["kd"]: row["top1_last"]
        for row in Results(Path(studied / "studies/small.parquet")).rows()
    }
    assert (labels["row"], labels["mean"], labels["n"]) == ("no kd", rows[False], 1)
    assert taught["difference"] == pytest.approx(rows[True] - rows[False])
    refused = kdcache(
        "study", str(grid), "--table", "seed", "keep", workspace=studied, timeout=1_500
    )
    assert refused.returncode == 2
    assert "pools students of kd False, True" in refused.stderr


def test_parts_that_share_a_workspace_lose_no_row(studied, grid, tmp_path):
    workspace = copy_workspace(studied, tmp_path / "copy")
    before = decided(workspace / "studies/small.parquet")
    (workspace / "studies/small.parquet").unlink()
    command = [sys.executable, "-m", "kdcache", "study", str(grid), "--workspace", str(workspace)]
    command += ["--block", "students", "--block", "teachers"]
    parts = [
        subprocess.Popen([*command, "--part", f"{part}/2"], cwd=ROOT, stderr=subprocess.DEVNULL)
        for part in (1, 2)
    ]
    assert [part.wait() for part in parts] == [0, 0]
    assert decided(workspace / "studies/small.parquet") == before


def test_no_file_of_a_tuning_student_contains_the_test_set(tmp_path):
    """Its evaluation images come out of the training split, and its training split lacks them."""
    from kdcache.data.parquet import parquet
    from kdcache.data.source import split_train_val

    source = digits()
    whole = split_train_val(source, None, 0)
    write_variant("digits", tmp_path, label_noise=0.25, tune_fraction=0.1)
    found = parquet(str(tmp_path))
    assert found.default_policy == source.default_policy
    images = {
        name: [split.read(position) for position in range(len(split.labels))]
        for name, split in {**found.splits, "test": whole["val"], "all": whole["train"]}.items()
    }
    assert sorted(images["train"] + images["val"]) == sorted(images["all"])
    counts = np.bincount(found.splits["val"].labels)
    assert (np.abs(counts - 0.1 * np.bincount(whole["train"].labels)) <= 0.5).all()
    truth = dict(zip(images["all"], whole["train"].labels.tolist(), strict=True))
    wrong = {
        name: sum(
            truth[image] != label
            for image, label in zip(images[name], split.labels.tolist(), strict=True)
        )
        for name, split in found.splits.items()
    }
    assert wrong == {"train": round(0.25 * len(images["train"])), "val": 0}


def test_label_noise_changes_the_requested_fraction_to_other_classes():
    labels = np.arange(1_000) % 7
    noisy = noisy_labels(labels, 7, 0.2)
    assert int((noisy != labels).sum()) == 200
    assert (noisy.min(), noisy.max()) == (0, 6)
    assert np.array_equal(noisy, noisy_labels(labels, 7, 0.2))


@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_a_study_killed_twenty_times_gives_the_same_table(studied, grid, tmp_path):
    killed = tmp_path / "killed"
    rows = Results(studied / "studies/small.parquet").rows()
    usual = max(row["processor_seconds"] or 0 for row in rows)
    rng = np.random.default_rng(0)
    command = [sys.executable, "-m", "kdcache", "study", str(grid), "--workspace", str(killed)]
    command += ["--block", "teachers", "--block", "students"]
    for kill in range(21):
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        if kill == 20:
            process.wait()
            break
        # From the start of a pack, a teacher, a store, a subset or a student on, at any time until
        # it is done and another has begun.
        started = time.time()
        logs = killed / "studies/logs"
        while process.poll() is None and not any(
            log.stat().st_mtime > started for log in logs.glob("*.out")
        ):
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 1.2 * usual))
        if process.poll() is not None:  # it was done before its last kill
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == 0
    assert decided(killed / "studies/small.parquet") == decided(studied / "studies/small.parquet")
    tables = [
        study(grid, workspace, "--block", "students", "--table", "kd", "keep")
        for workspace in (studied, killed)
    ]
    assert tables[0] == tables[1]


@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_two_parts_that_start_together_lose_no_row(grid, tmp_path):
    workspace = tmp_path / "workspace"
    command = [sys.executable, "-m", "kdcache", "study", str(grid), "--workspace", str(workspace)]
    parts = [
        subprocess.Popen([*command, "--part", f"{part}/2"], cwd=ROOT, stderr=subprocess.DEVNULL)
        for part in (1, 2)
    ]
    assert [part.wait() for part in parts] == [0, 0]
    assert study(grid, workspace)["trained"] == 0
    rows = Results(workspace / "studies/small.parquet").rows()
    assert sorted(row["status"] for row in rows) == ["failed"] + ["ok"] * (len(rows) - 1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["/usr/bin/mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs a machine that lets a small disk be mounted")
    yield disk
    subprocess.run(["/usr/bin/umount", str(disk)], check=True)


@pytest.mark.long
@pytest.mark.timeout(3_000)
def test_a_study_stops_on_a_full_disk_and_continues_when_there_is_space(grid, studied, small_disk):
    arguments = ("--block", "teachers", "--block", "students")
    stopped = kdcache("study", str(grid), *arguments, workspace=small_disk, timeout=1_500)
    assert stopped.returncode == 1
    assert "No space left on device" in stopped.stderr
    assert "run the same command again" in stopped.stderr
    found = Results(small_disk / "studies/small.parquet").rows()
    assert [row for row in found if row["status"] != "ok"] == []
    subprocess.run(["/usr/bin/mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    study(grid, small_disk, *arguments)
    assert decided(small_disk / "studies/small.parquet") == decided(
        studied / "studies/small.parquet"
    )
