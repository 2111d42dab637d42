"""A group of checks in a process that is really broken: by limits, by libraries, by mounts."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from kdcache.checkup.doctor import GROUPS
from kdcache.checkup.finding import Finding
from tests.conftest import ROOT

FINDINGS = """
import dataclasses, json, pathlib, sys
from kdcache.checkup.isolation import findings_of
found = findings_of(sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3], "the remedy of the group")
print(json.dumps([dataclasses.asdict(one) for one in found]))
"""


def check(
    title: str,
    workspace: Path,
    *,
    environment: Mapping[str, str] | None = None,
    limits: Mapping[int, int] | None = None,
    mounts: Sequence[str] = (),
) -> dict[str, Finding]:
    """Run one group of checks, as doctor does, from a process with less than it needs.

    Args:
        title: of the group.
        workspace: absolute.
        environment: variables that differ.
        limits: resource -> most of it.
        mounts: shell commands that mount something, for this process alone.
    """
    function = next(group.function for group in GROUPS if group.title == title)
    command = [sys.executable, "-c", FINDINGS, function, str(workspace), title]
    if mounts:
        require_mounts()
        script = " && ".join([*mounts, 'exec "$@"'])
        command = ["unshare", "--mount", "sh", "-c", script, "sh", *command]

    def limit() -> None:
        for name, most in (limits or {}).items():
            resource.setrlimit(name, (most, most))

    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | (environment or {}),
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return {finding["check"]: Finding(**finding) for finding in json.loads(done.stdout)}


def require_mounts() -> None:
    """Skip a test where this user may not mount."""
    trial = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    may_mount = (
        shutil.which("unshare")
        and not subprocess.run(trial, capture_output=True, check=False).returncode
    )
    if not may_mount:
        pytest.skip("needs to mount file systems (root, or CAP_SYS_ADMIN)")


def library(folder: Path, source: str, name: str = "broken.so", versions: str = "") -> Path:
    """Compile a shared library from C.

    Args:
        folder: where it is written.
        source: C.
        name: of the file.
        versions: content of the linker's version script, if others refer to versioned symbols.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler, which is not installed")
    path = folder / name
    command = [compiler, "-shared", "-fPIC", "-o", str(path), "-x", "c", "-"]
    if versions:
        script = folder / "versions"
        script.write_text(versions)
        command.append(f"-Wl,--version-script={script}")
    subprocess.run(command, input=source, text=True, check=True, capture_output=True)
    return path
