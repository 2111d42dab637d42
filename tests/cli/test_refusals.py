"""Every failure is one line on stderr, with its status."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from kdcache.commands import COMMANDS
from kdcache.seals import read_sealed_json, write_sealed_json
from kdcache.selection.subset import Subset
from tests.cli.conftest import refused
from tests.store.editing import change_manifest


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
    memory = read_sealed_json(workspace / "workspace.json", remedy="")
    del memory["subset"]
    write_sealed_json(workspace / "workspace.json", memory)
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
    # Without --quiet, the images that the teacher gets are printed first.
    words = ("build-logits", "--teacher", "resnet8", "--views", "2", "--quiet")
    answer = ask(*words, "--workspace", workspace)
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
