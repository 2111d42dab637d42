"""The options of every command, and its help."""

from __future__ import annotations

import pytest

from kdcache.commands import COMMANDS, app

COMMON = {"--workspace", "--json", "--quiet"}
PIXELS = {"--pixel-definition", "--decode"}
MODEL = {
    "--image-size",
    "--policy",
    "--view-seed",
    "--device",
    "--precision",
    "--batch-size",
} | PIXELS
LOOP = {
    *("--epochs", "--steps", "--optimizer", "--lr", "--momentum", "--weight-decay", "--schedule"),
    *("--warmup", "--milestones", "--gamma", "--ema", "--accumulate", "--clip-norm", "--compile"),
    *("--eval-every", "--tensorboard"),
}
OPTIONS = {
    "pack": {
        *("--source", "--subset", "--write-mode", "--max-resolution", "--val-fraction", "--seed"),
        *("--val-source", "--label-key", "--on-bad-image", "--num-workers", "--overwrite"),
        *("--classes", "--compact-labels", "--max-image-pixels", "--dry-run"),
    },
    "train-teacher": {
        *("--model", "--seed", "--num-workers", "--overwrite", "--name", "--save-epochs"),
        *MODEL,
        *LOOP,
    },
    "build-logits": {
        *("--teacher-mean", "--teacher-std", "--stem", "--teacher-output"),
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
        *("--average-with", "--compare", "--export", "--kept-files", "--out", "--overwrite"),
    },
    "train": {
        *LOOP,
        *("--subset", "--teacher", "--store", "--model", "--batch-size", "--seeds"),
        *("--live-teacher", "--arch", "--views"),
        *("--teacher-mean", "--teacher-std", "--stem", "--teacher-output"),
        *("--loss", "--alpha", "--standardise", "--label-smoothing", "--mixup", "--cutmix"),
        *("--temperature", "--reshape", "--kd", "--no-kd", "--seed", "--device", "--precision"),
        *PIXELS,
        *("--num-workers", "--order", "--pixels", "--out", "--resume"),
    },
    "evaluate": {
        *("--weights", "--which", "--model", "--arch", "--split", "--device", "--precision"),
        *PIXELS,
        *("--num-workers", "--mean", "--std", "--stem"),
    },
    "verify": {
        *("--stem", "--teacher-output"),
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
