"""Type checkers accept what a user may write, and refuse what would fail."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.long
def test_a_users_script_passes_a_strict_type_checker():
    script = ROOT / "tests" / "user_script.py"
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", str(script)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout
