"""What numba keeps on disk belongs to exactly these sources."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import kdcache

PACKAGE = Path(kdcache.__file__).parent
PRINT_BOX = (
    "from kdcache.data.views import parameters;"
    "print(parameters('rrc', 0, 1, [7], (375, 500)).tolist())"
)


def boxes_of(root: Path, cache_home: Path) -> str:
    """Return a view's box as the package in `root` draws it, in a process of its own."""
    environment = {"PYTHONPATH": str(root), "XDG_CACHE_HOME": str(cache_home)}
    process = subprocess.run(
        [sys.executable, "-c", PRINT_BOX],
        env=os.environ | environment,
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    return process.stdout


def test_a_change_in_a_called_function_is_compiled_anew_and_no_other(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "kdcache", ignore=shutil.ignore_patterns("__pycache__"))
    before = boxes_of(tmp_path, tmp_path / "cache")
    folders = set((tmp_path / "cache" / "kdcache").iterdir())
    with (tmp_path / "kdcache" / "cli.py").open("a") as unrelated:
        unrelated.write("# of no consequence\n")
    assert boxes_of(tmp_path, tmp_path / "cache") == before
    assert set((tmp_path / "cache" / "kdcache").iterdir()) == folders
    philox = tmp_path / "kdcache" / "data" / "philox.py"
    philox.write_text(philox.read_text().replace("_ROUNDS = 10", "_ROUNDS = 9"))
    assert boxes_of(tmp_path, tmp_path / "cache") != before


def test_without_a_folder_to_write_to_everything_still_runs(tmp_path):
    nowhere = tmp_path / "file"
    nowhere.touch()
    shutil.copytree(PACKAGE, tmp_path / "kdcache", ignore=shutil.ignore_patterns("__pycache__"))
    assert boxes_of(tmp_path, nowhere) == boxes_of(tmp_path, tmp_path / "cache")
