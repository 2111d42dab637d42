"""`kdcache doctor`: every group of checks, each in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from kdcache.checkup.isolation import findings_of
from kdcache.options import DoctorOptions
from kdcache.progress import logger


class Group(NamedTuple):
    """Checks that run in one process."""

    title: str
    function: str
    """`module:name` of `function(workspace) -> Iterator[Finding]`."""
    remedy: str
    """Where the process breaks down in a way that no check foresees."""


_REINSTALL = "pip install --force-reinstall --no-cache-dir"

GROUPS = (
    Group(
        "machine",
        "kdcache.checkup.machine:check_machine",
        "raise the limits of this shell or container (ulimit -a)",
    ),
    Group(
        "workspace",
        "kdcache.checkup.workspace:check_workspace",
        "choose another folder: --workspace FOLDER",
    ),
    Group(
        "torch",
        "kdcache.checkup.torch_pair:check_torch",
        f"{_REINSTALL} torch torchvision",
    ),
    Group(
        "compiler",
        "kdcache.checkup.compiler:check_compiler",
        f"{_REINSTALL} numba llvmlite",
    ),
    Group(
        "decoder",
        "kdcache.checkup.decoder:check_decoder",
        "install the Debian packages that the README names for FFCV, then "
        f"{_REINSTALL} --no-binary ffcv ffcv",
    ),
    Group(
        "packages",
        "kdcache.checkup.packages:check_packages",
        f"{_REINSTALL} zarr safetensors scikit-learn",
    ),
)


def doctor(options: DoctorOptions) -> dict[str, Any]:
    """Do on a small scale what kdcache does, and tell what fails.

    Returns:
        `error` (the walk on the digits in this workspace, or training on the GPU that is there,
        would fail), `note` and `ok`: name of each check -> `found` and, but for `ok`, `remedy`.
    """
    result: dict[str, dict[str, Any]] = {"error": {}, "note": {}, "ok": {}}
    workspace: Path = options.workspace.absolute()
    for group in GROUPS:
        logger.info("checking: %s", group.title)
        for finding in findings_of(group.function, workspace, group.title, group.remedy):
            result[finding.level][finding.check] = finding.about
    return result
