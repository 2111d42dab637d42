"""What a command prints when it succeeds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdcache.files import read_json
from kdcache.selection.subset import Subset
from kdcache.store.logit_store import LogitStore


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
        assert answer.status == 0
        # The teacher of these tests is at chance, which quiet does not hide.
        assert all(line.startswith("WARNING: the teacher") for line in answer.err.splitlines())
        assert json.loads(answer.out)


# What is refused
