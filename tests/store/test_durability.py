"""What a power cut finds: every file is on the disk before it gets its name, seen by the kernel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import ROOT
from tests.store.builds import WITH_HEAD
from tests.store.conftest import fresh_workspace

CALLS = "fsync,fdatasync,rename,renameat,renameat2,link,linkat,mkdir,mkdirat,openat"


class Call(NamedTuple):
    """A system call that succeeded."""

    name: str
    paths: list[str]
    """Absolute, of its arguments; of a descriptor the file that it stands for."""
    flags: str
    began: int
    ended: int
    """Lines of the trace."""


def calls_of(trace: Path) -> list[Call]:
    """Read what `strace -f -y` wrote; a call that another thread interrupts has two lines."""
    begun: dict[str, tuple[int, str]] = {}
    calls = []
    for number, line in enumerate(trace.read_text().splitlines()):
        thread, _, text = line.partition(" ")
        text = text.strip()
        began = number
        if text.endswith("<unfinished ...>"):
            begun[thread] = number, text.removesuffix("<unfinished ...>")
            continue
        if resumed := re.match(r"<\.\.\. \w+ resumed>", text):
            began, first = begun.pop(thread)
            text = first + text[resumed.end() :]
        found = re.match(r"(\w+)\((.*)\)\s+= (\d+)", text)
        if found:
            name, arguments, _ = found.groups()
            paths = re.findall(r'"(/[^"]*)"|\d+<(/[^>]*)>', arguments)
            calls.append(
                Call(name, [a or b for a, b in paths], arguments, began=began, ended=number)
            )
    return calls


@pytest.fixture(scope="module")
def trace(tmp_path_factory, tiny_workspace) -> tuple[Path, list[Call]]:
    """A store, and the system calls of the process that built it."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("needs strace, which is not installed")
    folder = tmp_path_factory.mktemp("trace")
    workspace = fresh_workspace(folder / "w", tiny_workspace)
    store = folder / "s.zarr"
    options = ["--views", "1", "--codec", "lowrank(k=2, r=2)", "--batch-size", "24", "--features"]
    done = subprocess.run(
        [
            *(strace, "-f", "-y", "--seccomp-bpf", "-e", f"trace={CALLS}", "-o", folder / "trace"),
            *(sys.executable, "-m", "kdcache", "build-logits", "--teacher", WITH_HEAD),
            *("--store", store, "--device", "cpu", "--quiet", *options),
        ],
        cwd=ROOT,
        env=os.environ | {"KDCACHE_WORKSPACE": str(workspace)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    if "ptrace" in done.stderr or "PTRACE" in done.stderr:
        pytest.skip(f"needs ptrace, which is not allowed here: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    return store, calls_of(folder / "trace")


def within(calls: list[Call], store: Path, *names: str) -> list[Call]:
    return [
        call
        for call in calls
        if call.name in names and call.paths and call.paths[-1].startswith(str(store))
    ]


def renames(trace: tuple[Path, list[Call]]) -> list[Call]:
    store, calls = trace
    return within(calls, store, "rename", "renameat", "renameat2")


def test_every_file_gets_its_name_by_a_rename(trace):
    store, calls = trace
    files = {str(file) for file in store.rglob("*") if file.is_file()}
    assert {call.paths[-1] for call in renames(trace)} == files
    assert len(files) > 40
    written = {
        call.paths[0]
        for call in within(calls, store, "openat")
        if "O_WRONLY" in call.flags or "O_RDWR" in call.flags
    }
    assert written
    assert [path for path in written if not path.endswith(".partial")] == []


def test_every_file_is_flushed_before_it_gets_its_name(trace):
    _, calls = trace
    flushed = [(call.paths[0], call.ended) for call in calls if call.name in ("fsync", "fdatasync")]
    late = [
        rename.paths[-1]
        for rename in renames(trace)
        if not any(path == rename.paths[0] and at < rename.began for path, at in flushed)
    ]
    assert late == []


def test_every_folder_is_flushed_after_a_name_in_it_appeared(trace):
    store, calls = trace
    appeared = [*renames(trace), *within(calls, store, "mkdir", "mkdirat", "link", "linkat")]
    assert len(appeared) > len(renames(trace))
    flushed = [(call.paths[0], call.began) for call in calls if call.name == "fsync"]
    lost = []
    for call in appeared:
        folder = str(Path(call.paths[-1]).parent)
        # Before the next name in the same folder: what comes later may depend on this one.
        next_one = min(
            (
                other.began
                for other in appeared
                if other.began > call.ended and str(Path(other.paths[-1]).parent) == folder
            ),
            default=calls[-1].ended + 1,
        )
        if not any(path == folder and call.ended < at < next_one for path, at in flushed):
            lost.append(call.paths[-1])
    assert lost == []


def test_what_says_that_something_is_whole_comes_after_it(trace):
    store, _ = trace
    order = {str(Path(call.paths[-1]).relative_to(store)): call.began for call in renames(trace)}
    assert min(order, key=order.__getitem__) == "zarr.json"
    for view in (0, 1):
        rows = [at for key, at in order.items() if key.startswith(f"views/{view}/rows/")]
        assert max(rows) < order[f"views/{view}/complete"]
    for shard in range(3):
        with_it = [order[f"{name}/c/{shard}"] for name in ("scores/el2n", "stats/top1")]
        with_it.append(order[f"features/c/{shard}/0"])
        assert max(with_it) < order[f"views/0/rows/c/{shard}/0"]
    assert order["views/0/complete"] < order["codec.npz"] < order["views/1/rows/zarr.json"]
