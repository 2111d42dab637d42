"""Commands that are interrupted, or started several times by torchrun and srun."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kdcache.commands import COMMANDS
from kdcache.workspace import Workspace
from tests.cli.conftest import refused


def test_interrupted_it_says_how_to_go_on(ask, workspace, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Workspace, "require_store", interrupt)
    monkeypatch.setattr(Workspace, "require_beton", interrupt)
    monkeypatch.setattr("kdcache.data.pack.open_source", interrupt)
    monkeypatch.setattr("kdcache.store.upkeep.merge.parse_location", interrupt)
    answers = [
        (("train", "--subset", "full"), "again with --resume to continue\n"),
        (("train", "--subset", "full", "--resume"), "again to continue\n"),
        (("build-logits",), "again to continue\n"),
        (("build-logits", "--overwrite"), "again without --overwrite to continue\n"),
        (("train-teacher",), "again to continue\n"),
        (("train-teacher", "--overwrite"), "again; it starts over\n"),
        (("pack", "digits"), "again; it starts over\n"),
        (("select",), "again; it starts over\n"),
        (("run", "digits"), "again to continue\n"),
        (("merge", "a", "--out", "b"), "again with --overwrite; it starts over\n"),
    ]
    for command, expected in answers:
        answer = ask(*command, "--quiet", "--workspace", workspace)
        refused(answer, 1, f"interrupted; run the same command {expected}")


@pytest.mark.parametrize(
    ("environment", "speaks"),
    [
        ({"RANK": "1"}, True),  # left over, or of another program: no torchrun
        ({"WORLD_SIZE": "2"}, True),
        ({"RANK": "0", "WORLD_SIZE": "2"}, True),
        ({"RANK": "1", "WORLD_SIZE": "2"}, False),
    ],
    ids=str,
)
def test_of_the_processes_of_torchrun_the_first_prints_the_result(
    ask, workspace, monkeypatch, environment, speaks
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    answer = ask("show", workspace / "train.beton", "--workspace", workspace, "--json")
    assert (answer.status, bool(answer.out)) == (0, speaks)


SHARING_OR_READING = {"build-logits", "show", "doctor"}
REQUIRED = {
    "score": ["el2n"],
    "show": ["x"],
    "study": ["digits"],
    "run": ["digits"],
    "pack": ["digits"],
    "export": ["x.npz"],
}
REQUIRED["merge"] = ["a.zarr", "--out", "b.zarr"]


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - SHARING_OR_READING))
def test_a_command_that_shares_no_work_is_refused_under_torchrun(
    ask, tmp_path, command, monkeypatch
):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    answer = ask(command, *REQUIRED.get(command, []), "--workspace", tmp_path / "w")
    refused(answer, 2, "WORLD_SIZE is 2, expected 1", f"Run it alone: kdcache {command}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", sorted(SHARING_OR_READING - {"doctor"}))
def test_a_command_that_shares_its_work_or_only_reads_runs_under_torchrun(
    ask, tmp_path, command, monkeypatch
):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    answer = ask(command, *REQUIRED.get(command, []), "--workspace", tmp_path / "w")
    assert "WORLD_SIZE" not in answer.err  # it gets to what it lacks


def test_one_process_of_torchrun_is_alone(ask, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    refused(ask("train", "--subset", "full", "--workspace", tmp_path), 1, "kdcache pack")


@pytest.mark.parametrize(("rank", "world_size"), [("2", "2"), ("-1", "2"), ("0", "two"), ("", "1")])
def test_ranks_that_are_none_are_refused(ask, workspace, monkeypatch, rank, world_size):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world_size)
    refused(ask("select", "--workspace", workspace), 2, f"RANK is {rank!r}", repr(world_size))


def test_the_refusal_under_torchrun_loads_nothing_heavy():
    code = (
        "import sys; from kdcache.cli import main; main(['train']); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'numba', 'ffcv', 'zarr')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"RANK": "0", "WORLD_SIZE": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "WORLD_SIZE is 2" in done.stderr


def test_torchrun_itself_starts_no_training(workspace):
    runs = sorted((workspace / "runs").iterdir())
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, "-m", "kdcache", "train", "--epochs", "1", "--workspace", workspace],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "kdcache: WORLD_SIZE is 2, expected 1: train runs in one process" in done.stderr
    assert sorted((workspace / "runs").iterdir()) == runs


@pytest.mark.parametrize(
    ("command", "remedy"),
    [
        (["train", "--subset", "full"], "Start one (srun --ntasks 1)"),
        (["build-logits"], "--part $((SLURM_PROCID + 1))/4"),
        (["build-logits", "--part", "2/4"], None),
        (["show", "x"], None),
    ],
    ids=str,
)
def test_tasks_of_srun_that_do_the_same_are_warned_about(
    ask, tmp_path, monkeypatch, command, remedy
):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    answer = ask(*command, "--workspace", tmp_path)
    assert ("srun started 4 tasks" in answer.err) == (remedy is not None)
    assert remedy is None or remedy in answer.err


def test_a_batch_script_of_several_tasks_is_one_process(ask, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert "srun" not in ask("train", "--subset", "full", "--workspace", tmp_path).err
