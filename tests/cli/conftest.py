"""A whole pipeline through the command line, and what a command leaves."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kdcache.cli import main
from kdcache.progress import logger
from tests.workspaces import copy_workspace


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


@pytest.fixture(scope="session")
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
