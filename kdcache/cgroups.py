"""The control groups (cgroups) that this process is in: where containers and Slurm set limits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

MOUNT: Path = Path("/sys/fs/cgroup")
MEMBERSHIP: Path = Path("/proc/self/cgroup")


def group_folders(
    controller: str, *, mount: Path = MOUNT, membership: Path = MEMBERSHIP
) -> Iterator[Path]:
    """Yield the folder of each control group that limits this process, its own group first.

    A process obeys the limits of its own group and of every group above it. In a container, the
    path of its group often refers to the host and does not exist; the mount is always yielded.

    Args:
        controller: such as "memory" or "cpu".
        mount: where control groups are mounted; those of version 1 in one folder per controller.
        membership: the file that lists the control groups of this process.
    """
    for base, group in _groups(controller, mount, membership):
        above = () if ".." in group.parts else (group, *group.parents)
        folders = [base.joinpath(*path.parts[1:]) for path in above]
        yield from dict.fromkeys([*folders, base])


def read_limit(path: Path) -> str:
    """Return the content of a control group's file; "max" (no limit) if it does not exist."""
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return "max"


def _groups(controller: str, mount: Path, membership: Path) -> Iterator[tuple[Path, PurePosixPath]]:
    """Yield where the groups of a version are mounted, and the process's group below that."""
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:  # no control groups here; the mount may still be there
        lines = ["0::/", f"1:{controller}:/"]
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if not controllers:  # version 2 has one hierarchy for all controllers
            yield mount, PurePosixPath(group)
        elif controller in controllers.split(","):
            yield mount / controller, PurePosixPath(group)
