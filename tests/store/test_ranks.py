"""Several processes on one store: ranks of torchrun, of which one dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from kdcache.errors import ConfigError
from kdcache.options import BuildLogitsOptions
from kdcache.store.build.build import build_logits
from kdcache.store.build.plan import Part
from tests.conftest import ROOT, kdcache
from tests.store.conftest import fresh_workspace, snapshot
from tests.store.teachers import DELAY

pytestmark = pytest.mark.processes

# int8 is decided from the clean view, so that the ranks have to wait for each other once.
ARGUMENTS = [
    *("build-logits", "--teacher", "tests.store.teachers:slow", "--views", "2"),
    *("--codec", "int8", "--batch-size", "8", "--device", "cpu", "--quiet", "--json"),
]


def torchrun(workspace: Path, ranks: int, *, delay: float) -> subprocess.Popen[str]:
    # One thread in every process: their number is a condition of the build.
    environment = os.environ | {"OMP_NUM_THREADS": "1", DELAY: str(delay)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = ["-m", "kdcache", *ARGUMENTS, "--workspace", str(workspace)]
    return subprocess.Popen(
        [*launcher, f"--nproc-per-node={ranks}", *command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_rank_that_dies_is_made_up_for_by_another_number_of_ranks(
    tiny_workspace, tmp_path, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    alone = fresh_workspace(tmp_path / "alone", tiny_workspace)
    done = kdcache(*ARGUMENTS, workspace=alone)
    assert done.returncode == 0, done.stderr

    workspace = fresh_workspace(tmp_path / "ranks", tiny_workspace)
    path = workspace / "stores" / "slow.zarr"
    with torchrun(workspace, 3, delay=0.3) as launcher:
        deadline = time.monotonic() + 120
        while len(list(path.glob("views/0/rows/c/*/0"))) < 3:
            assert launcher.poll() is None, launcher.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        ranks = psutil.Process(launcher.pid).children(recursive=True)
        victim = next(rank for rank in ranks if rank.environ().get("RANK") == "1")
        victim.send_signal(signal.SIGKILL)
        launcher.communicate(timeout=120)
    assert launcher.returncode != 0
    assert not (path / "views/2/complete").exists()
    kept = len(list(path.glob("views/*/rows/c/*/0")))
    assert kept >= 3

    with torchrun(workspace, 2, delay=0) as launcher:
        output, errors = launcher.communicate(timeout=240)
    assert launcher.returncode == 0, errors
    assert output.count("teacher_forwards") == 1  # one rank speaks
    assert snapshot(path) == snapshot(alone / "stores" / "slow.zarr")


def test_a_rank_is_a_part_and_says_so_where_a_part_is_asked_for():
    ranked = {"RANK": "1", "WORLD_SIZE": "3"}
    assert Part.parse(None, ranked) == Part(1, 3, runs_concurrently=True)
    with pytest.raises(ConfigError, match=r"part=1/2: torchrun .* part 2/3"):
        Part.parse("1/2", ranked)


def test_parts_do_not_replace_each_others_store(tiny_workspace, tmp_path):
    workspace = fresh_workspace(tmp_path / "w", tiny_workspace)
    options = BuildLogitsOptions(
        teacher="tests.teachers:projection", workspace=workspace, part="2/2", overwrite=True
    )
    with pytest.raises(ConfigError, match="overwrite=True is given to part 2/2"):
        build_logits(options)
