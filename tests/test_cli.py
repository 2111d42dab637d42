"""The command line's contract: exit status, one JSON object on stdout, one line on stderr."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from kdcache.cli import main
from kdcache.commands import COMMANDS, app
from kdcache.files import read_json, write_json
from kdcache.progress import logger
from kdcache.selection.subset import Subset
from kdcache.store.logit_store import LogitStore
from kdcache.workspace import Workspace
from tests.conftest import ROOT, kdcache
from tests.store.conftest import change_manifest
from tests.workspaces import copy_workspace

COMMON = {"--workspace", "--json", "--quiet"}
MODEL = {"--image-size", "--policy", "--view-seed", "--device", "--precision", "--batch-size"}
LOOP = {
    *("--epochs", "--steps", "--optimizer", "--lr", "--momentum", "--weight-decay", "--schedule"),
    *("--warmup", "--milestones", "--gamma", "--ema", "--accumulate", "--clip-norm", "--compile"),
    *("--eval-every", "--tensorboard"),
}
OPTIONS = {
    "pack": {
        *("--source", "--subset", "--write-mode", "--max-resolution", "--val-fraction", "--seed"),
        *("--val-source", "--label-key", "--on-bad-image", "--num-workers", "--overwrite"),
    },
    "train-teacher": {
        *("--model", "--seed", "--num-workers", "--overwrite", "--name", "--save-epochs"),
        *MODEL,
        *LOOP,
    },
    "build-logits": {
        *(
            "--teacher",
            "--arch",
            "--ensemble",
            "--teacher-size",
            "--views",
            "--subset",
            "--features",
            "--codec",
            "--store",
        ),
        *("--part", "--allow-mixed", "--num-workers", "--overwrite"),
        *MODEL,
    },
    "score": {"--name", "--teacher", "--store", "--overwrite"},
    "select": {
        *("--method", "--score", "--scores", "--keep", "--balance", "--min-per-class", "--start"),
        *("--cut", "--peak", "--concentration", "--parity", "--seed", "--teacher", "--store"),
        *("--average-with", "--compare", "--export", "--out", "--overwrite"),
    },
    "train": {
        *LOOP,
        *("--subset", "--teacher", "--store", "--model", "--batch-size", "--seeds"),
        *("--live-teacher", "--arch", "--views"),
        *("--loss", "--alpha", "--standardise", "--label-smoothing", "--mixup", "--cutmix"),
        *("--temperature", "--reshape", "--kd", "--no-kd", "--seed", "--device", "--precision"),
        *("--num-workers", "--order", "--pixels", "--out", "--resume"),
    },
    "evaluate": {
        *("--weights", "--which", "--model", "--arch", "--split", "--device", "--precision"),
        "--num-workers",
    },
    "verify": {
        *("--store", "--repair", "--teacher", "--arch", "--rows", "--seed", "--device"),
        *("--num-workers", "--allow-mixed"),
    },
    "merge": {"--parts", "--out", "--overwrite"},
    "export": {"--out", "--store", "--view", "--overwrite"},
    "show": {"--path"},
    "run": {"--pipeline", "--recipe", "--source", "--dry-run"},
    "doctor": set(),
    "study": {
        *("--grid", "--source", "--results", "--block", "--jobs", "--part", "--until", "--commit"),
        *("--tune-fraction", "--retry", "--dry-run", "--table", "--where", "--plot"),
    },
}
"""Frozen: an option that is added, renamed or lost is a change for every user and pipeline."""


class Answer(NamedTuple):
    """What a command left."""

    status: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _messages_restored() -> Iterator[None]:
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Run a command in this process."""

    def ask(*arguments: object) -> Answer:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return Answer(status, *capsys.readouterr())

    return ask


class Walk(NamedTuple):
    """The whole way, every command with --json."""

    workspace: Path
    answers: dict[str, Answer]

    def result(self, command: str) -> dict[str, Any]:
        return json.loads(self.answers[command].out)


@pytest.fixture(scope="module")
def walk(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Walk:
    workspace = tmp_path_factory.mktemp("walk") / "workspace"
    with pytest.MonkeyPatch.context() as patch:
        # Options that make it short; what they stand for is left to its default.
        patch.setenv("KDCACHE_WORKSPACE", str(workspace))
        commands = {
            "pack": [tiny_folder, "--val-fraction", "0.25"],
            "train-teacher": ["--model", "resnet8", "--epochs", "1"],
            "build-logits": ["--views", "2"],
            "select": [],
            "train": ["--epochs", "2"],
            "evaluate": [],
        }
        answers = {}
        for command, arguments in commands.items():
            workers = [] if command == "select" else ["--num-workers", "1"]
            with pytest.MonkeyPatch.context() as streams:
                out, err = _Text(), _Text()
                streams.setattr(sys, "stdout", out)
                streams.setattr(sys, "stderr", err)
                status = main([command, *map(str, arguments), *workers, "--json"])
            answers[command] = Answer(status, out.text, err.text)
    return Walk(workspace, answers)


class _Text:
    """A text stream that keeps what is written."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


@pytest.fixture
def workspace(walk: Walk, tmp_path: Path) -> Path:
    """A copy of the walk's workspace, to write to."""
    return copy_workspace(walk.workspace, tmp_path / "workspace")


def refused(answer: Answer, status: int, *values: str) -> None:
    """The contract of every failure: its status, nothing on stdout, one line on stderr."""
    assert answer.out == ""
    assert answer.err.count("\n") == 1
    assert answer.err.startswith("kdcache: ")
    for value in values:
        assert value in answer.err
    assert answer.status == status


# What can be asked


def test_the_options_of_every_command_are_frozen():
    found = {
        command: {
            name
            for argument in app[command].assemble_argument_collection()
            for name in argument.names
        }
        for command in COMMANDS
    }
    assert found == {command: options | COMMON for command, options in OPTIONS.items()}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option(ask, command):
    answer = ask(command, "--help")
    assert (answer.status, answer.err) == (0, "")
    for option in OPTIONS[command] | COMMON:
        assert option in answer.out
    assert COMMANDS[command][0].__doc__.split("\n")[0] in " ".join(answer.out.split())


def test_help_lists_every_command_in_the_order_of_the_walk(ask):
    answer = ask("--help")
    places = [answer.out.index(f" {command} ") for command in COMMANDS]
    assert places == sorted(places)
    assert ask("--version").out == "0.1.0\n"


# What comes back


@pytest.mark.parametrize(
    ("command", "keys"),
    [
        ("pack", {"fingerprint", "train", "val", "skipped"}),
        ("train-teacher", {"top1", "path", "seconds"}),
        (
            "build-logits",
            {
                *("samples", "views", "rows", "teacher_forwards", "train_quality", "val_quality"),
                *("bytes", "seconds", "path", "cost"),
            },
        ),
        ("select", {"method", "keep", "kept", "of", "path"}),
        (
            "train",
            {
                *("top1", "top1_best", "top5", "top1_ema", "samples", "teacher_forwards", "path"),
                *("images_per_second", "seconds", "resumed_from_epoch"),
                *("steps", "student_forwards"),
            },
        ),
        ("evaluate", {"top1", "top5", "nll", "ece", "samples", "split", "seconds", "path"}),
    ],
)
def test_a_result_is_one_json_object_on_stdout(walk, command, keys):
    answer = walk.answers[command]
    assert answer.status == 0
    assert answer.out.count("\n") == 1
    assert answer.out.endswith("\n")
    assert json.loads(answer.out).keys() == keys


def test_results_say_what_was_done(walk):
    packed = walk.result("pack")
    assert packed["train"].keys() == packed["val"].keys() == {"samples", "classes", "path"}
    assert (packed["train"]["samples"], packed["val"]["samples"], packed["skipped"]) == (72, 24, 0)
    assert packed["fingerprint"] == read_json(walk.workspace / "train.json")["fingerprint"]

    built = walk.result("build-logits")
    assert (built["samples"], built["views"], built["teacher_forwards"]) == (72, 2, 72 * 3)
    stored = [file for file in Path(built["path"]).rglob("*") if file.is_file()]
    assert built["bytes"] == sum(file.stat().st_size for file in stored)
    assert LogitStore.open(built["path"]).num_views == 2

    selected = walk.result("select")
    subset = Subset.load(selected.pop("path"))
    assert selected == {"method": "medium", "keep": 0.7, "kept": 50, "of": 72}
    assert len(subset) == 50

    trained = walk.result("train")
    assert (trained["samples"], trained["teacher_forwards"]) == (50, 0)
    assert trained["resumed_from_epoch"] == 0
    for accuracy in ("top1", "top1_best", "top5"):
        assert 0 <= trained[accuracy] <= 100
    assert trained["top1"] <= trained["top1_best"]
    assert trained["images_per_second"] > 0

    evaluated = walk.result("evaluate")
    assert (evaluated["top1"], evaluated["top5"]) == (trained["top1"], trained["top5"])
    assert (evaluated["samples"], evaluated["split"]) == (24, "val")


def test_every_path_is_absolute_and_there(walk):
    packed = walk.result("pack")
    paths = [packed["train"]["path"], packed["val"]["path"]]
    paths += [
        walk.result(command)["path"]
        for command in ("train-teacher", "build-logits", "select", "train")
    ]
    for path in paths:
        assert Path(path).is_absolute()
        assert Path(path).exists()


def test_each_command_says_what_it_uses(walk):
    said = {command: answer.err for command, answer in walk.answers.items()}
    assert "train: 72 images as raw" in said["pack"]
    assert "teacher resnet8 on 72 samples" in said["train-teacher"]
    assert "teacher resnet8 (resnet8, sha256 " in said["build-logits"]
    assert "resnet8.zarr by cross_entropy" in said["select"]
    for used in ("student resnet8 on 50 of 72", "2 epochs", "alpha 0.9", "T 4", "V = 2"):
        assert used in said["train"]


def test_run_again_a_command_says_that_it_is_up_to_date(ask, workspace, tiny_folder):
    options = ("--workspace", workspace)
    for command in (
        ("pack", tiny_folder, "--val-fraction", "0.25"),
        ("train-teacher", "--model", "resnet8", "--epochs", "1"),
        ("build-logits", "--views", "2"),
        ("select",),
    ):
        answer = ask(*command, *options)
        assert (answer.status, answer.err.count("up to date")) == (0, 1), answer


def test_without_json_the_result_is_a_short_readable_summary(ask, workspace):
    answer = ask("select", "--workspace", workspace)
    lines = dict(line.split(maxsplit=1) for line in answer.out.splitlines())
    assert lines.keys() == {"method", "keep", "kept", "of", "path"}
    assert (lines["method"], lines["keep"], lines["kept"]) == ("medium", "0.70", "50")


def test_quiet_says_nothing_on_stderr(ask, workspace):
    options = ("--workspace", workspace, "--quiet", "--json", "--num-workers", "1")
    for command in (
        ("train", "--epochs", "1"),
        ("build-logits", "--views", "3", "--codec", "float32", "--overwrite"),
    ):
        answer = ask(*command, *options)
        assert (answer.status, answer.err) == (0, "")
        assert json.loads(answer.out)


# What is refused


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        (["select", "--keep", "0"], ["--keep 0.0", "(0, 1]"]),
        (["select", "--keep", "30"], ["--keep 30.0", "(0, 1]"]),
        (["select", "--keep", "-0.5"], ["--keep -0.5", "(0, 1]"]),
        (["select", "--keep", "nan"], ["--keep nan"]),
        (["select", "--keep", "most"], ["--keep", '"most"']),
        (["select", "--method", "best"], ["best", "random", "easy", "hard", "medium"]),
        (
            ["select", "--score", "loss"],
            ["loss", "cross_entropy", "entropy", "margin", "least_confidence", "el2n"],
        ),
        (["select", "--balance", "fair"], ["fair", "proportional", "class", "none"]),
        (["train", "--alpha", "1.1"], ["--alpha 1.1", "[0, 1]"]),
        (["train", "--alpha", "-0.1"], ["--alpha -0.1", "[0, 1]"]),
        (["train", "--temperature", "0"], ["--temperature 0.0", "above 0"]),
        (["train", "--temperature", "-4"], ["--temperature -4.0", "above 0"]),
        (["train", "--epochs", "0"], ["--epochs 0", "above 0"]),
        (["train", "--batch-size", "-1"], ["--batch-size -1", "above 0"]),
        (["train", "--lr", "0"], ["--lr 0.0", "above 0"]),
        (["train", "--epochs", "3", "--steps", "9"], ["--epochs is 3", "--steps is 9", "one of"]),
        (["train", "--momentum", "1"], ["--momentum 1.0", "[0, 1)"]),
        (["train", "--ema", "1"], ["--ema 1.0", "(0, 1)"]),
        (["train", "--accumulate", "0"], ["--accumulate 0", "above 0"]),
        (["train", "--clip-norm", "-1"], ["--clip-norm -1.0", "above 0"]),
        (["train", "--eval-every", "0"], ["--eval-every 0", "above 0"]),
        (["train", "--weight-decay", "-1"], ["--weight-decay -1.0", "at least 0"]),
        (["train", "--warmup", "0"], ["--warmup 0.0", "one-cycle"]),
        (["train", "--optimizer", "adam"], ["adam", "sgd", "adamw"]),
        (["train", "--schedule", "linear"], ["linear", "one-cycle", "cosine", "step", "constant"]),
        (
            ["train", "--optimizer", "adamw", "--momentum", "0.5"],
            ["--momentum 0.5", "--optimizer sgd"],
        ),
        (["train", "--gamma", "0.5"], ["--gamma 0.5", "--schedule step"]),
        (
            ["train-teacher", "--schedule", "step", "--milestones", "0.7", "--milestones", "0.3"],
            ["--milestones 0.7, 0.3", "rising"],
        ),
        (
            ["train", "--schedule", "step", "--warmup", "0.5", "--milestones", "0.4"],
            ["--milestones 0.4", "--warmup 0.5"],
        ),
        (["train", "--seeds", "0"], ["--seeds 0", "above 0"]),
        (["train", "--no-kd", "--views", "3"], ["--views 3", "--kd"]),
        (["train", "--views", "0", "--live-teacher", "x"], ["--views 0", "--live-teacher"]),
        (["train", "--live-teacher", "a", "--no-kd"], ["--kd False", "--live-teacher"]),
        (["train", "--live-teacher", "a", "--reshape"], ["--reshape True", "--live-teacher"]),
        (["evaluate", "--which", "first"], ["first", "last", "best", "ema"]),
        (["evaluate", "--split", "test"], ["test", "train", "val"]),
        (["train", "--lr", "inf"], ["--lr inf", "finite"]),
        (["train", "--temperature", "inf"], ["--temperature inf", "finite"]),
        (["train", "--weight-decay", "inf"], ["--weight-decay inf", "finite"]),
        (
            ["train", "--schedule", "step", "--milestones", "nan"],
            ["--milestones nan", "rising shares"],
        ),
        (["train", "--no-kd", "--pixels", "warn"], ["--pixels warn", "cached logits"]),
        (["train", "--live-teacher", "a", "--pixels", "warn"], ["--pixels warn"]),
        (["verify", "--rows", "8"], ["--rows 8", "--teacher"]),
        (["verify", "--seed", "8"], ["--seed 8", "--teacher"]),
        (["verify", "--arch", "resnet8"], ["--arch resnet8", "--teacher or --repair"]),
        (["select", "--method", "beta", "--concentration", "inf"], ["--concentration inf"]),
        (["select", "--out", "mine"], ["--out mine", "NAME.npz"]),
        (["select", "--export", "s.txt"], ["--export s.txt", "NAME.npy"]),
        (["train", "--seed", "-1"], ["--seed -1", "at least 0"]),
        (["train", "--device", "tpu"], ["tpu", "auto", "cpu", "cuda"]),
        (["train", "--model", "resnet9"], ["--model resnet9", "resnet8", "mobilenet_v2"]),
        (["train-teacher", "--model", "vgg"], ["--model vgg", "resnet50"]),
        (["build-logits", "--views", "-1"], ["--views -1", "at least 0"]),
        (["build-logits", "--codec", "zip"], ["zip", "dense", "float32"]),
        (["pack", "digits", "--val-fraction", "1"], ["--val-fraction 1.0", "[0, 1)"]),
        (["pack", "digits", "--write-mode", "png"], ["png", "auto", "raw", "jpg"]),
        (["pack", "digits", "--num-workers", "0"], ["--num-workers 0", "above 0"]),
        (["pack"], ["--source"]),
        (["pack", "no/such/source"], ["no/such/source", "digits"]),
        (["train", "--bogus"], ["--bogus"]),
        (["train-teacher", "--save-epochs", "5,2"], ["--save-epochs 5,2", "rising"]),
        (["train-teacher", "--save-epochs", "0"], ["--save-epochs 0", "from 1"]),
        (["train-teacher", "--name", "a/b"], ["--name a/b"]),
        (["study", "digit"], ["GRID is digit", "digits"]),
        (["study", "digits", "--jobs", "0"], ["--jobs 0", "above 0"]),
        (["study", "digits", "--until", "25:00"], ["--until 25:00", "02:30"]),
        (["study", "digits", "--part", "3/2"], ["--part 3/2"]),
        (["study", "digits", "--tune-fraction", "1"], ["--tune-fraction 1.0", "(0, 1)"]),
        (["study", "digits", "--source", "digits"], ["--source digits", "NAME=VALUE"]),
        (["study", "digits", "--where", "keep=1"], ["--where keep=1", "--table"]),
        (["study", "digits", "--plot", "a.txt", "--table", "kd", "keep"], ["a.txt", "NAME.png"]),
        (["train", "--no-json"], ["--no-json"]),
        (["select", "surplus"], ["surplus"]),
        (["distil"], ["distil", "build-logits"]),
        (["--json", "select"], ["--json", "kdcache select --json"]),
        (["select", "--workspace", ""], ["--workspace", "empty"]),
    ],
    ids=lambda value: " ".join(value) if value[0] in {*COMMANDS, "distil"} else "",
)
def test_what_is_asked_wrongly_is_refused(ask, tmp_path, monkeypatch, arguments, values):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDCACHE_WORKSPACE", str(tmp_path / "workspace"))
    refused(ask(*arguments), 2, *values)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        ["train-teacher", "--model", "resnet8"],
        ["build-logits"],
        ["build-logits", "--teacher", "resnet50"],
        ["build-logits", "--teacher", "tests.teachers:projection"],
        ["train"],
        ["evaluate"],
    ],
    ids=str,
)
def test_where_nothing_is_packed_pack_is_named(ask, tmp_path, command):
    answer = ask(*command, "--workspace", tmp_path / "empty")
    refused(answer, 1, str(tmp_path / "empty"), "kdcache pack SOURCE")


def test_an_empty_source_cannot_be_packed(ask, tmp_path):
    (tmp_path / "images").mkdir()
    answer = ask("pack", tmp_path / "images", "--workspace", tmp_path / "workspace")
    refused(answer, 1, f"{tmp_path / 'images'} holds no")
    assert not (tmp_path / "workspace").exists()


def test_where_nothing_is_built_build_logits_is_named(ask, workspace):
    (workspace / "workspace.json").unlink()
    for command in (["select"], ["train", "--subset", "full"]):
        answer = ask(*command, "--workspace", workspace)
        refused(answer, 2, "no store was built yet", "kdcache build-logits")
    answer = ask("select", "--teacher", "resnet34", "--workspace", workspace)
    refused(answer, 2, "--teacher resnet34", "kdcache build-logits --teacher resnet34")


def test_where_nothing_is_selected_both_remedies_are_named(ask, workspace):
    memory = read_json(workspace / "workspace.json")
    del memory["subset"]
    write_json(workspace / "workspace.json", memory)
    answer = ask("train", "--workspace", workspace)
    refused(answer, 2, "--subset", "kdcache select", "--subset full")


def test_a_subset_that_is_not_there_is_named(ask, workspace):
    answer = ask("train", "--subset", "hard-0.5", "--workspace", workspace)
    refused(answer, 2, "--subset hard-0.5", "kdcache select")


def test_left_out_the_teacher_is_the_only_one_there_is(ask, workspace):
    folder = workspace / "teachers"
    shutil.copy(folder / "resnet8.safetensors", folder / "other.safetensors")
    answer = ask("build-logits", "--workspace", workspace)
    refused(answer, 2, "--teacher is not given", "other, resnet8")
    shutil.rmtree(folder)
    answer = ask("build-logits", "--workspace", workspace)
    refused(answer, 2, "--teacher is not given", "kdcache train-teacher", "module:callable")


def test_a_teacher_that_is_not_there_is_refused(ask, workspace):
    answer = ask("build-logits", "--teacher", "resnet34", "--workspace", workspace)
    refused(answer, 1, "--teacher resnet34", "kdcache train-teacher --model resnet34")
    answer = ask("build-logits", "--teacher", "resnet9", "--workspace", workspace)
    refused(answer, 2, "--teacher resnet9", "resnet9.safetensors does not exist")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("command", ["train-teacher", "build-logits", "train", "evaluate"])
def test_cuda_is_refused_where_there_is_none(ask, workspace, command):
    answer = ask(command, "--device", "cuda", "--workspace", workspace)
    refused(answer, 2, "--device cuda", "--device cpu")


def test_a_subset_of_other_data_is_refused(ask, workspace):
    Subset(np.arange(9), {"data_fingerprint": "e" * 64}).save(workspace / "subsets/other.npz")
    answer = ask("train", "--subset", "other", "--workspace", workspace)
    refused(answer, 1, "other.npz", "e" * 12)


def test_a_store_of_other_data_is_refused(ask, workspace):
    change_manifest(workspace / "stores/resnet8.zarr", data_fingerprint="f" * 64)
    answer = ask("train", "--subset", "full", "--workspace", workspace)
    refused(answer, 1, "resnet8.zarr", "f" * 12)
    answer = ask("build-logits", "--teacher", "resnet8", "--views", "2", "--workspace", workspace)
    refused(answer, 1, "resnet8.zarr", "data_fingerprint", "--overwrite")


def test_a_store_with_a_missing_shard_is_refused(ask, workspace):
    (workspace / "stores/resnet8.zarr/views/1/rows/c/0/0").unlink()
    for command in ("select", "train"):
        answer = ask(command, "--workspace", workspace)
        refused(answer, 1, "lacks views/1/rows/c/0/0", "kdcache build-logits")


def test_a_run_that_is_there_is_refused(ask, workspace):
    run_dir = workspace / "runs/resnet8-medium-0.7-s0"
    answer = ask("train", "--epochs", "2", "--out", run_dir, "--workspace", workspace)
    refused(answer, 2, f"--out {run_dir}", "--resume")
    answer = ask("train", "--epochs", "3", "--resume", "--workspace", workspace)
    refused(answer, 1, "epochs is 3, found 2")


def test_a_workspace_that_is_a_file_is_refused(ask, tmp_path, tiny_folder):
    (tmp_path / "file").write_text("")
    answer = ask("pack", tiny_folder, "--val-fraction", "0", "--workspace", tmp_path / "file")
    refused(answer, 1, str(tmp_path / "file"))


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


def test_a_fault_of_our_own_keeps_its_traceback(workspace, monkeypatch):
    def fault(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Workspace, "require_store", fault)
    with pytest.raises(ZeroDivisionError):
        main(["select", "--workspace", str(workspace)])


# As a process


def test_a_process_ends_with_the_status_and_keeps_the_streams_apart(workspace):
    done = kdcache("select", "--keep", "0.5", "--json", workspace=workspace)
    assert done.returncode == 0
    assert json.loads(done.stdout)["kept"] == 36
    assert "hard" not in done.stderr
    assert "medium of" in done.stderr
    failed = kdcache("select", "--keep", "7", "--json", workspace=workspace)
    refused(Answer(failed.returncode, failed.stdout, failed.stderr), 2, "--keep 7.0")


@pytest.mark.parametrize(
    ("redirections", "status", "last_words"),
    [
        ("| true", 0, ""),
        (">/dev/full", 1, "kdcache: the result cannot be printed: No space left on device\n"),
        ("<&- >&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
    ],
)
def test_a_stream_that_takes_nothing_leaves_no_traceback(
    workspace, redirections, status, last_words
):
    command = f"'{sys.executable}' -m kdcache show --quiet '{workspace / 'train.beton'}'"
    script = f"set -o pipefail; {command} {redirections}"
    done = subprocess.run(
        ["/bin/bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, "", last_words)


def test_a_path_is_printed_whatever_the_encoding(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = kdcache(workspace=tmp_path / "\u56fe \udcff")
    assert done.returncode == 0
    assert "\\u56fe \\udcff" in done.stdout


def test_an_empty_variable_counts_as_unset(ask, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDCACHE_WORKSPACE", "")
    answer = json.loads(ask("--json").out)
    assert answer["workspace"] == str(tmp_path / "kdcache-workspace")


def test_messages_do_not_reach_the_root_logger(ask, workspace):
    """A program that uses kdcache and logs of its own would print them twice."""
    seen: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    try:
        ask("select", "--workspace", workspace)
    finally:
        logging.getLogger().removeHandler(handler)
    assert seen == []


def test_a_dry_run_of_a_study_says_how_many_students_it_does_not_list(ask, tmp_path):
    answer = ask("study", "digits", "--dry-run", "--json", "--workspace", tmp_path)
    *listed, more = answer.err.splitlines()
    left = json.loads(answer.out)["left"]
    assert more == f"... and {left - len(listed)} more"
    assert left > len(listed) > 0
