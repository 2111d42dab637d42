"""Signatures of a step's files, which show whether a file has changed since the last run.

A file that kdcache made and a later step reads is compared by content: by its manifest, which holds
digests of the data, or by the digest of a small file. So when a step runs again with the same
result, no later step runs. Users' images and weights are compared by size and time of change,
because reading them takes minutes.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdcache.data.beton_manifest import manifest_path
from kdcache.errors import KDCacheError
from kdcache.files import read_json, sha256_of
from kdcache.options import (
    BuildLogitsOptions,
    CommonOptions,
    PackOptions,
    SelectOptions,
    TrainOptions,
    as_names,
)
from kdcache.seals import JSON_KEY
from kdcache.workspace import Workspace

HUGGING_FACE_PREFIX = "hf:"

_STORE_FILES = ("zarr.json", "codec.npz", "views/*/complete")
"""The files that describe a store: its manifest, its codec, and its complete views."""

_CHANGING_FILES = (*_STORE_FILES, "config.json", "last.safetensors")
"""The files of a store or run folder that change whenever anything in it changes."""


def inputs_of(options: CommonOptions, workspace: Workspace) -> dict[str, Any]:
    """Return the signature of every file that a step reads, by path; None for a missing file."""
    paths: list[Path | str] = []
    if isinstance(options, PackOptions):
        if options.source is not None:
            sources = [str(s) for s in (options.source, options.val_source) if s is not None]
            return {source: signature_of_images(source) for source in sources}
        paths += _subset(options.subset, workspace)
    paths += [workspace.beton("train"), workspace.beton("val")]
    if isinstance(options, BuildLogitsOptions):
        folder = workspace.teacher("NAME").parent
        names = as_names(options.teacher) or tuple(
            path.stem for path in sorted(folder.glob("*.safetensors"))
        )
        paths += [path for name in names for path in _teacher(name, workspace)]
        paths += _subset(options.subset or "full", workspace)
    if isinstance(options, SelectOptions):
        paths += _store(options.teacher, options.store, workspace)
        paths += [Path(options.scores)] if options.scores else []
    if isinstance(options, TrainOptions):
        paths += _store(options.teacher, options.store, workspace)
        paths += _subset(options.subset, workspace)
        live = options.live_teacher
        paths += [] if live is None else _teacher(str(live), workspace)
    return {str(path): _content(path) for path in paths}


def _content(path: Path | str) -> Any:
    """Return a signature of the content of a beton, store or file, as JSON content."""
    if isinstance(path, str) or path.suffix == ".safetensors":
        return signature(path)
    if path.suffix == ".beton":
        return _content_of_beton(manifest_path(path))
    if path.is_dir():
        files = sorted(file for pattern in _STORE_FILES for file in path.glob(pattern))
        return {str(file.relative_to(path)): sha256_of(file) for file in files}
    return sha256_of(path) if path.is_file() else None


def _content_of_beton(manifest: Path) -> Any:
    """Return a digest of a manifest without the origin of the images, which no later step reads."""
    if not manifest.is_file():
        return None
    about = read_json(manifest)
    for origin in ("made_from", "digests_digest", "names_digest", JSON_KEY):
        about.pop(origin, None)
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def signature(path: Path | str) -> Any:
    """Return size and time of change of a file, store or run, as JSON content; None if missing."""
    if isinstance(path, str):  # a URL: new content gets a new name
        return path
    if path.is_dir():
        files = sorted(file for pattern in _CHANGING_FILES for file in path.glob(pattern))
        return [[str(file.relative_to(path)), *_stamp(file)] for file in files]
    return _stamp(path) if path.is_file() else None


def signature_of_images(source: str) -> Any:
    """Return the signature of a source: of a file, or of all files in a folder or of a pattern.

    Return None if the source is not on this machine's disks, such as a data set in a package.
    """
    path = Path(source.removeprefix(HUGGING_FACE_PREFIX))
    if path.is_file():
        return signature(path)
    files = _files_below(path) if path.is_dir() else _files_of_pattern(source)
    content = hashlib.sha256()
    found = 0
    for found, file in enumerate(files, 1):  # noqa: B007  (used after the loop)
        stamp = _stamp(file) if os.path.isfile(file) else None  # noqa: PTH113  (a million)
        content.update(f"{file} {stamp}\n".encode(errors="surrogateescape"))
    return content.hexdigest() if found else None


def _files_below(folder: Path) -> Iterator[str]:
    """Yield all paths below a folder in a fixed order; follow links, and visit each folder once."""
    seen: set[str] = set()
    for below, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        yield from (f"{below}/{name}" for name in sorted(folders + names))
        if (real := os.path.realpath(below)) in seen:
            folders.clear()
        seen.add(real)


def _files_of_pattern(source: str) -> Iterator[str]:
    from braceexpand import braceexpand

    try:
        names = list(braceexpand(source))
    except ValueError:  # `pack` reports what is wrong with it
        return
    for name in names:
        yield from sorted(glob.glob(name))  # noqa: PTH207  (a pattern is no Path)


def _stamp(path: Path | str) -> list[int]:
    found = os.stat(path)  # noqa: PTH116  (a million)
    return [found.st_size, found.st_mtime_ns]


def _teacher(name: str, workspace: Workspace) -> list[Path]:
    """Return the file of a teacher that is a path or lies in the workspace, else no file."""
    return [path for path in (Path(name), workspace.teacher(name)) if path.is_file()][:1]


def _store(
    teacher: Path | str | None, store: Path | str | None, workspace: Workspace
) -> list[Path | str]:
    try:
        return [workspace.require_store(teacher, store)]
    except KDCacheError:
        return []


def _subset(name: Path | str | None, workspace: Workspace) -> list[Path]:
    try:
        path = workspace.require_subset(name)
    except KDCacheError:
        return []
    return [] if path is None else [path]
