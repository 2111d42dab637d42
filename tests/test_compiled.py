"""What numba keeps on disk belongs to exactly these sources."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

import kdcache
from kdcache.compiled import MAX_CACHE_FOLDERS, evict

PACKAGE = Path(kdcache.__file__).parent
PRINT_BOX = (
    "from kdcache.data.views import view_parameters;"
    "print(view_parameters('rrc', 0, 1, [7], (375, 500)).tolist())"
)


def boxes_of(root: Path, cache_home: Path) -> str:
    """Return a view's box as the package in `root` draws it, in a process of its own."""
    return run_with(PRINT_BOX, root, cache_home)


def run_with(code: str, root: Path, cache_home: Path | str) -> str:
    """Run code with the package in `root`, in a process of its own; return what it prints."""
    environment = {"PYTHONPATH": str(root), "XDG_CACHE_HOME": str(cache_home)}
    process = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Traceback" not in process.stderr
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
    alone = boxes_of(tmp_path, nowhere)
    assert not list(tmp_path.rglob("*.nbi")), "numba wrote beside the sources"
    assert alone == boxes_of(tmp_path, tmp_path / "cache")


def test_a_user_without_a_home_folder_is_served_too(tmp_path):
    nobody = "import os, pwd; del os.environ['HOME']; pwd.getpwuid = {}.__getitem__;"
    assert run_with(nobody + PRINT_BOX, PACKAGE.parent, "") == boxes_of(PACKAGE.parent, tmp_path)


@pytest.mark.parametrize(("suffix", "kept_bytes"), [(".nbi", 0), (".nbc", 40)])
def test_a_damaged_file_of_the_cache_is_compiled_anew_and_replaced(tmp_path, suffix, kept_bytes):
    intact = boxes_of(PACKAGE.parent, tmp_path)
    files = {path: path.stat().st_size for path in tmp_path.rglob(f"*{suffix}")}
    assert files
    for path in files:
        os.truncate(path, kept_bytes)
    assert boxes_of(PACKAGE.parent, tmp_path) == intact
    # Compiled anew, the same function may differ by a few bytes.
    assert {path for path in files if path.stat().st_size < 0.9 * files[path]} == set()


def test_a_full_disk_under_the_cache_costs_only_time_and_is_told_once(tmp_path):
    # A file may not grow beyond 64 bytes here, which the write of a compiled function exceeds.
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64));"
    catch = "import sys, logging; logging.basicConfig(stream=sys.stdout, format='%(message)s');"
    printed = run_with(limit + catch + PRINT_BOX, PACKAGE.parent, tmp_path)
    assert not list(tmp_path.rglob("*.nbc"))
    *told, box = printed.splitlines()
    assert f"{box}\n" == boxes_of(PACKAGE.parent, tmp_path)
    assert len(told) == 1
    assert told[0].startswith(f"compiled functions cannot be kept in {tmp_path / 'kdcache'}: File")


def test_the_files_of_other_packages_beside_it_are_not_taken_for_its_own(tmp_path):
    """As pip installs it, PIL/Image.py lies beside kdcache/."""
    site = tmp_path / "site-packages"
    site.mkdir()
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if "kdcache" not in package.name:
            (site / package.name).symlink_to(package)
    shutil.copytree(PACKAGE, site / "kdcache", ignore=shutil.ignore_patterns("__pycache__"))
    assert (site / "PIL" / "Image.py").is_file()
    run_with("import kdcache.data.views, kdcache.data.images", site, tmp_path / "cache")
    assert len(list((tmp_path / "cache" / "kdcache").iterdir())) > 1


@pytest.mark.parametrize(
    ("max_folders", "unused_days", "left"),
    [(3, 0, {0, 1, 2}), (0, 2.5, {0, 1, 2}), (4, 2.5, {0, 1, 2, 3}), (9, 0, {0, 1, 2, 3, 4, 5})],
)
def test_eviction_keeps_the_newest_folders_and_those_in_use(
    tmp_path, max_folders, unused_days, left
):
    day = 24 * 3600
    for age in range(6):
        folder = tmp_path / f"{age}"
        folder.mkdir()
        (folder / "code.nbi").touch()
        os.utime(folder, (time.time() - age * day,) * 2)
    evict(tmp_path, max_folders=max_folders, min_unused_seconds=unused_days * day)
    assert {int(folder.name) for folder in tmp_path.iterdir()} == left


def test_each_start_marks_what_it_uses_and_a_new_folder_evicts_old_ones(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "kdcache", ignore=shutil.ignore_patterns("__pycache__"))
    home = tmp_path / "cache" / "kdcache"
    long_ago = (time.time() - 30 * 24 * 3600,) * 2
    start = "import kdcache.data.philox"  # decorates functions, and compiles none
    run_with(start, tmp_path, tmp_path / "cache")
    (used,) = home.iterdir()
    old = {home / f"old-{number}" for number in range(300)}
    for folder in old:
        folder.mkdir()
    for folder in (used, *old):
        os.utime(folder, long_ago)
    run_with(start, tmp_path, tmp_path / "cache")
    assert set(home.iterdir()) == {used} | old
    assert time.time() - used.stat().st_mtime < 3600
    with (tmp_path / "kdcache" / "data" / "philox.py").open("a") as changed:
        changed.write("# of no consequence\n")
    run_with(start, tmp_path, tmp_path / "cache")
    assert used.exists()
    assert len(set(home.iterdir())) == MAX_CACHE_FOLDERS
