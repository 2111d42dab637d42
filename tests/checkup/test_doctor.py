"""`kdcache doctor` as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from kdcache.checkup.doctor import GROUPS
from tests.conftest import ROOT


def doctor(tmp_path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run it where torch cannot be loaded, and most libraries that need it neither."""
    (tmp_path / "torch").mkdir(exist_ok=True)
    (tmp_path / "torch/__init__.py").write_text("raise ImportError('damaged')")
    return subprocess.run(
        [sys.executable, "-m", "kdcache", "doctor", "--workspace", "w", *options],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_doctor_exits_with_1_and_its_findings_if_training_would_fail(tmp_path):
    done = doctor(tmp_path, "--json")
    assert done.returncode == 1
    result = json.loads(done.stdout)
    assert list(result) == ["error", "note", "ok"]
    assert result["error"].keys() == {"torch", "decoder", "weights"}
    for about in [*result["error"].values(), *result["note"].values()]:
        assert about["found"]
        assert about["remedy"]
    assert {"system", "open files", "workspace", "compiler", "digits", "store"} <= (
        result["ok"].keys() | result["note"].keys()
    )
    assert str(tmp_path) in result["ok"]["workspace"]["found"]
    assert done.stderr.splitlines() == [f"checking: {group.title}" for group in GROUPS]


def test_the_text_output_has_one_line_per_finding_errors_first(tmp_path):
    done = doctor(tmp_path, "--quiet")
    assert (done.returncode, done.stderr) == (1, "")
    levels = [line.split()[0] for line in done.stdout.splitlines()]
    assert levels == sorted(levels, key=["error", "note", "ok"].index)
    assert levels.count("error") == 3
    (torch,) = (line for line in done.stdout.splitlines() if " torch: " in line)
    assert "ImportError: damaged, pip install" in torch
