"""Every example runs from an empty folder and fits the package's types."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

EXAMPLES = ROOT / "examples"
NAMES = sorted(path.name for path in EXAMPLES.glob("*.py"))

PRINTED = {
    "own_training_loop.py": r"719 of 1438 samples(\nepoch \d: loss of the last batch \d.*){3}",
    "continue_in_the_middle.py": r"1438 samples, 1438 different, of 1438",
    "own_score.py": r"computed_from='stored rows.*\neasy: 14\d samples.*\nhard: 14\d samples",
    "own_method.py": r"SelectReport\(method='own_method:every_second', keep=0.25, kept=36\d",
    "own_loss.py": r"top-1 \d+\.\d %, 0 teacher forwards",
}


def test_every_example_is_described_and_tested():
    described = re.findall(
        r"^\| `(\w+\.py)` \|", (EXAMPLES / "README.md").read_text(), re.MULTILINE
    )
    assert sorted(described) == NAMES == sorted(PRINTED)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_an_example_runs_in_an_empty_folder(name, tmp_path):
    process = subprocess.run(
        [sys.executable, EXAMPLES / name],
        cwd=tmp_path,
        env=os.environ | {"PYTHONWARNINGS": "error:::__main__"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert re.search(PRINTED[name], process.stdout), process.stdout
    assert not list(Path(tmp_path).iterdir())


@pytest.mark.long
def test_the_examples_fit_the_types_of_the_public_functions(tmp_path):
    process = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--follow-imports=silent",
            "--cache-dir",
            tmp_path,
            *EXAMPLES.glob("*.py"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert process.returncode == 0, process.stdout
