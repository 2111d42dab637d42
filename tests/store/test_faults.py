"""Builds that are killed, again and again: the same bytes in the end, and no work lost."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from kdcache.cli import main
from kdcache.errors import CacheIncompleteError
from kdcache.selection.subset import Subset
from kdcache.store.format.layout import PER_SAMPLE_ARRAYS
from kdcache.store.logit_store import LogitStore
from tests.conftest import ROOT
from tests.store.builds import NUM_SAMPLES, PROJECTION, SLOW, build
from tests.store.conftest import fresh_workspace, snapshot

pytestmark = pytest.mark.faults

KEPT = np.arange(0, NUM_SAMPLES, 3, dtype=np.int64)


class Scenario(NamedTuple):
    """A build, and where it dies: see `tests.store.killed_builds`."""

    teacher: str
    options: dict[str, Any]
    points: list[str | int]
    beside: bool = False
    """In the workspace of a store for all samples."""


EVERY_COMMIT_POINT: list[str | int] = [
    "zarr/zarr.json",  # the empty store is about to appear
    "labels/zarr.json",
    "labels/c/0",
    "views/0/zarr.json",
    "views/1/rows/zarr.json",
    "stats/top1/c/0",  # amid the scores of the first shard
    "views/2/rows/c/8/0",  # the last shard of all
    "views/1/complete",
]
SCENARIOS = {
    "at every commit point": Scenario(SLOW, {"views": 2}, EVERY_COMMIT_POINT),
    "after every few files, 30 times": Scenario(SLOW, {"views": 2}, [4] * 30),
    "where the codec is chosen": Scenario(
        PROJECTION,
        {"views": 2, "codec": "auto"},
        ["views/0/rows/c/8/0", "views/0/complete", "codec.npz", "views/1/rows/zarr.json", 2],
    ),
    "where a codec is fitted": Scenario(
        PROJECTION,
        {"views": 2, "codec": "lowrank(k=2, r=2)"},
        ["views/0/complete", "codec.npz", 0, 1, "views/1/rows/c/3/0", "views/2/complete"],
    ),
    "for a subset beside a full store": Scenario(
        PROJECTION,
        {"views": 2, "subset": "kept"},
        ["sample_ids/c/0", "views/0/rows/c/3/0", "views/1/zarr.json", "views/2/rows/c/1/0", 1],
        beside=True,
    ),
}


def prepare(folder: Path, tiny_workspace: Path, tiny_store: LogitStore, scenario: Scenario) -> Path:
    workspace = fresh_workspace(folder, tiny_workspace)
    Subset(KEPT).save(workspace / "subsets/kept.npz")
    if scenario.beside:
        shutil.copytree(tiny_store.path, workspace / "stores/projection.zarr")
    return workspace


def arguments(workspace: Path, scenario: Scenario) -> list[str]:
    """Return the command line of `build`."""
    given = {"codec": "float32", "batch_size": 8, "device": "cpu"} | scenario.options
    options = [(f"--{name.replace('_', '-')}", str(value)) for name, value in given.items()]
    return [
        *("build-logits", "--teacher", scenario.teacher, "--workspace", str(workspace), "--quiet"),
        *(word for option in options for word in option),
    ]


class Deaths(NamedTuple):
    """What is left of a build after its last death."""

    workspace: Path
    ends: list[dict[str, Any]]
    said: str

    @property
    def path(self) -> Path:
        *_, path = sorted(self.workspace.glob("stores/*.zarr"), key=lambda path: len(path.name))
        return path


@pytest.fixture(scope="module")
def deaths(tmp_path_factory, tiny_workspace, tiny_store) -> Mapping[str, Deaths]:
    """Every scenario's deaths, from one process that has imported everything."""
    folder = tmp_path_factory.mktemp("deaths")
    workspaces = {
        name: prepare(folder / str(number), tiny_workspace, tiny_store, scenario)
        for number, (name, scenario) in enumerate(SCENARIOS.items())
    }
    given = [
        (scenario.points, arguments(workspaces[name], scenario))
        for name, scenario in SCENARIOS.items()
    ]
    result = subprocess.run(
        [sys.executable, "-m", "tests.store.killed_builds", json.dumps(given)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    ends = iter([json.loads(line) for line in result.stdout.splitlines()])
    return {
        name: Deaths(workspaces[name], [next(ends) for _ in scenario.points], result.stderr)
        for name, scenario in SCENARIOS.items()
    }


def shards_to_do(path: Path, options: dict[str, Any]) -> int:
    """Return the rows that are in no shard yet, counted from file names alone."""
    rows = {0: NUM_SAMPLES}
    rows |= dict.fromkeys(range(1, options["views"] + 1), len(KEPT) if "subset" in options else 72)
    files = snapshot(path)
    left = 0
    for view, count in rows.items():
        needed = ["views/{}/rows/c/{}/0"]
        needed += [f"{name}/c/{{1}}" for name in PER_SAMPLE_ARRAYS] if view == 0 else []
        for shard in range(-(-count // 8)):
            if not all(name.format(view, shard) in files for name in needed):
                left += min(8, count - shard * 8)
    return left


def without_warnings(text: str) -> list[str]:
    """Return the lines on stderr without those about the teacher, which knows nothing."""
    return [line for line in text.splitlines() if not line.startswith("WARNING: ")]


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_build_that_was_killed_is_finished_to_the_same_bytes(
    deaths, name, tmp_path, tiny_workspace, tiny_store
):
    scenario, left = SCENARIOS[name], deaths[name]
    expected = [{"point": point, "ended by": signal.SIGKILL} for point in scenario.points]
    assert left.ends == expected, left.said
    assert without_warnings(left.said) == []
    with pytest.raises(CacheIncompleteError):
        LogitStore.open(left.path)
    (leftover,) = left.workspace.rglob("*.partial")  # those of the deaths before were swept
    undisturbed = prepare(tmp_path / "w", tiny_workspace, tiny_store, scenario)
    whole = build(undisturbed, scenario.teacher, **scenario.options)
    to_do = shards_to_do(left.path, scenario.options)
    result = build(left.workspace, scenario.teacher, **scenario.options)
    assert result["teacher_forwards"] == to_do  # what was written is kept
    assert to_do < whole["teacher_forwards"]
    assert not leftover.exists()
    assert snapshot(left.path) == snapshot(Path(whole["path"]))
    assert not list(left.workspace.rglob("*.partial"))


def test_deaths_leave_the_store_that_gives_the_clean_view_and_still_take_it(deaths, tiny_store):
    left = deaths["for a subset beside a full store"]
    full = left.workspace / "stores/projection.zarr"
    assert snapshot(full) == snapshot(tiny_store.path)
    for shard in range(9):
        key = f"views/0/rows/c/{shard}/0"
        assert (left.path / key).samefile(full / key)


# A full disk


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, of 300 kB; resized by the function that it comes with."""
    place = tmp_path / "disk"
    place.mkdir()

    mount_command, umount_command = shutil.which("mount"), shutil.which("umount")
    if mount_command is None or umount_command is None:
        pytest.skip("needs the commands mount and umount")

    def mount(*words: str) -> None:
        done = subprocess.run(
            [mount_command, "-t", "tmpfs", *words, "tmpfs", str(place)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"needs to mount a tmpfs, which is not allowed here: {done.stderr.strip()}")

    mount("-o", "size=300k")
    try:
        yield place, lambda size: mount("-o", f"remount,size={size}")
    finally:
        subprocess.run([umount_command, str(place)], check=True)


def test_a_full_disk_is_named_and_the_build_goes_on_when_there_is_space(
    small_disk, workspace, undisturbed_projection, capsys
):
    disk, resize = small_disk
    path = disk / "s.zarr"
    command = arguments(workspace, Scenario(PROJECTION, {"views": 3}, []))
    command += ["--store", str(path)]
    assert main(command) == 1
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = without_warnings(said.err)
    assert re.fullmatch(rf"kdcache: .*No space left on device.*{path}/.*", line)
    with pytest.raises(CacheIncompleteError):
        LogitStore.open(path)
    kept = shards_to_do(path, {"views": 3})
    assert 0 < kept < 4 * NUM_SAMPLES
    assert not list(disk.rglob("*.partial"))
    resize("4m")
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["teacher_forwards"] == kept
    assert snapshot(path) == undisturbed_projection


@pytest.fixture
def undisturbed_projection(tiny_store) -> dict[str, bytes]:
    return snapshot(tiny_store.path)
