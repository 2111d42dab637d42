"""Check the files of a workspace that are neither betons nor stores, for `kdcache verify`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from kdcache.errors import KDCacheError, shell_line
from kdcache.models.weights_files import problems_of_protected, weights_problem
from kdcache.seals import read_sealed_json, require_whole, seal_state_of
from kdcache.selection.subset import Subset
from kdcache.workspace import Workspace


class FileCheck(NamedTuple):
    """The result of reading one file."""

    path: Path
    error: str | None
    """The fault and its remedy, with the file's name; None for an intact file."""


def check_files(workspace: Workspace) -> Iterator[FileCheck]:
    """Read manifests, subsets, score files, weights and logs of runs, and yield each result.

    Lock files hold no data. Weights that another program wrote have no seal, so nothing can be said
    about them.
    """
    for pattern, check in _CHECKS:
        for path in sorted(workspace.root.glob(pattern)):
            problems = list(check(path))
            yield from (FileCheck(file, error) for file, error in problems)
            if not problems:
                yield FileCheck(path, None)


def _check_json(path: Path) -> Iterator[tuple[Path, str]]:
    remedy = "Copy it from a backup, or remove it and run the command that wrote it again"
    yield from _error_of(path, lambda: read_sealed_json(path, remedy=remedy))


def _check_subset(path: Path) -> Iterator[tuple[Path, str]]:
    yield from _error_of(path, lambda: Subset.load(path))


def _check_scores(path: Path) -> Iterator[tuple[Path, str]]:
    remedy = (
        f"Run: kdcache score {path.stem} --store {path.parent.with_suffix('.zarr')} --overwrite"
    )
    yield from _error_of(path, lambda: require_whole(seal_state_of(path), path, remedy))


def _check_weights(path: Path) -> Iterator[tuple[Path, str]]:
    remedy = "Copy it from a backup, or train again"
    if problem := weights_problem(path):
        yield path, f"{path} {problem}. {remedy}"
        return
    try:
        for file, problem in problems_of_protected(path):
            yield file, f"{file} {problem}. {remedy}"
    except (KeyError, TypeError, ValueError, AttributeError):
        return  # another program wrote it


def _error_of(path: Path, read: Callable[[], object]) -> Iterator[tuple[Path, str]]:
    try:
        read()
    except (KDCacheError, OSError) as error:
        yield path, shell_line(error)


_CHECKS: tuple[tuple[str, Callable[[Path], Iterator[tuple[Path, str]]]], ...] = (
    ("workspace.json", _check_json),
    ("recipes/*.json", _check_json),
    ("subsets/*.npz", _check_subset),
    ("stores/*.scores/*.npz", _check_scores),
    ("teachers/*.safetensors", _check_weights),
    ("runs/*/config.json", _check_json),
    ("runs/*/*.safetensors", _check_weights),
)
"""(pattern in the workspace, check), in the order of the messages."""
