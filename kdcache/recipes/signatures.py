"""Whether files are those of last time: size and time of change, never their content."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from kdcache.errors import KDCacheError
from kdcache.options import (
    BuildLogitsOptions,
    CommonOptions,
    PackOptions,
    SelectOptions,
    TrainOptions,
)
from kdcache.workspace import Workspace

_TELLING = ("zarr.json", "codec.npz", "views/*/complete", "config.json", "last.safetensors")
"""Of a store and of a run: these files are replaced when anything in it is."""


def inputs_of(options: CommonOptions, workspace: Workspace) -> dict[str, Any]:
    """Return the signature of every file that a stage reads, by path; None where there is none."""
    paths: list[Path | str] = []
    if isinstance(options, PackOptions):
        if options.source is not None:
            return {options.source: signature_of_images(Path(options.source))}
        paths += _subset(options.subset, workspace)
    paths += [workspace.beton("train"), workspace.beton("val")]
    if isinstance(options, BuildLogitsOptions):
        folder = workspace.teacher("NAME").parent
        named = (options.teacher,) if isinstance(options.teacher, str) else options.teacher
        names = named or tuple(path.stem for path in sorted(folder.glob("*.safetensors")))
        paths += [path for name in names for path in _teacher(name, workspace)]
        paths += _subset(options.subset or "full", workspace)
    if isinstance(options, SelectOptions):
        paths += _store(options.teacher, options.store, workspace)
        paths += [options.scores] if options.scores else []
    if isinstance(options, TrainOptions):
        paths += _store(options.teacher, options.store, workspace)
        paths += _subset(options.subset, workspace)
        paths += _teacher(options.live_teacher, workspace) if options.live_teacher else []
    return {str(path): signature(path) for path in paths}


def signature(path: Path | str) -> Any:
    """Return what changes when a file, a store or a run does, as JSON content; None without it."""
    if isinstance(path, str):  # a URL: whoever writes there says so by another name
        return path
    if path.is_dir():
        files = sorted(file for pattern in _TELLING for file in path.glob(pattern))
        return [[str(file.relative_to(path)), *_stamp(file)] for file in files]
    return _stamp(path) if path.is_file() else None


def signature_of_images(path: Path) -> Any:
    """Return the signature of a source: of every file in a folder."""
    if not path.is_dir():
        return signature(path)
    content = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            content.update(f"{file.relative_to(path)} {_stamp(file)}\n".encode(errors="replace"))
    return content.hexdigest()


def _stamp(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _teacher(name: str, workspace: Workspace) -> list[Path]:
    """Return the file of a teacher, where it is one of ours or a path."""
    return [path for path in (Path(name), workspace.teacher(name)) if path.is_file()][:1]


def _store(teacher: str | None, store: str | None, workspace: Workspace) -> list[Path | str]:
    try:
        return [workspace.require_store(teacher, store)]
    except KDCacheError:
        return []


def _subset(name: str | None, workspace: Workspace) -> list[Path]:
    try:
        path = workspace.require_subset(name)
    except KDCacheError:
        return []
    return [] if path is None else [path]
