"""Where a command prints, and what it does when a stream takes nothing."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest

from kdcache.cli import main
from kdcache.progress import logger
from kdcache.workspace import Workspace
from tests.cli.conftest import Answer, refused
from tests.conftest import ROOT, kdcache


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


def test_messages_are_worded_for_python_again_after_a_command(ask, tmp_path):
    heard = []
    ask("select", "--keep", "7", "--workspace", tmp_path)
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logger.addHandler(handler)
    try:
        logger.warning("Use --min-per-class %d", 1)
    finally:
        logger.removeHandler(handler)
    assert heard == ["Use min_per_class=1"]


def test_the_summary_of_an_empty_list_says_none(ask, workspace):
    assert ask("verify", "--workspace", workspace).out.splitlines()[4] == f"{'repaired':<20} none"
