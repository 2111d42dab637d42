"""The README tells the present: its commands run, its example runs, its tree is the tree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import kdcache
from kdcache.cli import main
from kdcache.commands import COMMANDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Return the README's code blocks in a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


COMMAND_LINES = [
    line for block in blocks("sh") for line in block.splitlines() if line.startswith("kdcache ")
]


@pytest.mark.long
@pytest.mark.timeout(900)  # every command, on a machine that may be busy
def test_the_commands_and_the_example_run_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDCACHE_WORKSPACE", raising=False)
    for line in COMMAND_LINES:
        # As written, but few views and one epoch: the walk is under test, not the models.
        arguments = line.replace("--views 50", "--views 2").split()[1:]
        shorter = {"train": "--epochs 1", "train-teacher": "--epochs 1"}
        if "--views" not in arguments:
            shorter["build-logits"] = "--views 2"
        short = shorter.get(arguments[0], "").split()
        assert main([*arguments, *short]) == 0, line
    (example,) = blocks("python")
    exec(compile(example, "README.md", "exec"), {"__name__": "__main__"})  # noqa: S102


def test_every_command_stands_in_the_readme():
    assert {line.split()[1] for line in COMMAND_LINES} == set(COMMANDS)


def test_the_make_targets_exist():
    targets = re.findall(r"^make ([\w-]+)", "\n".join(blocks("sh")), flags=re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets == ["demo", "test", "test-all", "check"]
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


def test_the_file_tree_names_what_is_there():
    tree = re.findall(r"^  (\S+)\s{2,}", README, flags=re.MULTILINE)
    assert tree
    package = Path(kdcache.__file__).parent
    assert [name for name in tree if not (package / name).exists()] == []


@pytest.mark.parametrize("script", re.findall(r"^python (benchmarks/\S+)", README, re.MULTILINE))
def test_the_benchmarks_exist(script):
    assert (ROOT / script).exists()
