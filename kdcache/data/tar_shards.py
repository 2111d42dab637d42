"""Read WebDataset shards: tar files in which the members of a sample share a name.

`0001.jpg` and `0001.cls` are an image and its label. Nothing is unpacked: an image is read from its
offset in the tar file. Only images, `.cls` and `.json` are ever read; links are not followed, and
members of other kinds, such as pickles, are never opened.

References:
    The WebDataset format: https://github.com/webdataset/webdataset
"""

from __future__ import annotations

import glob
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from kdcache.data.image_folder import IMAGE_SUFFIXES
from kdcache.data.source import Source, Split, choose_splits, files_digest, group_by_split
from kdcache.data.source_kind import Argument, SourceKind
from kdcache.data.tables import resolve_class_names
from kdcache.errors import ConfigError, DatasetError

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp"})
NAMES_FILES = ("classes.txt", "classnames.txt")
"""Files beside the shards that list the class names, one per line, in label order."""

_BLOCK_BYTES = 512


@dataclass(frozen=True)
class TarSplit:
    """Images inside tar files, in the order of the shards and of their members."""

    shards: list[Path]
    shard_of: npt.NDArray[np.int32]
    """(N,) index of the image's shard."""
    byte_ranges: npt.NDArray[np.int64]
    """(N, 2) offset and size of the image in its shard, in bytes."""
    members: list[str]
    labels: npt.NDArray[np.int64]

    def read(self, position: int) -> bytes:
        """Return the member's bytes."""
        start, size = self.byte_ranges[position].tolist()
        with self.shards[self.shard_of[position]].open("rb") as file:
            file.seek(start)
            return file.read(size)

    def name(self, position: int) -> str:
        """Return the shard and the member."""
        return f"{self.shards[self.shard_of[position]]}, {self.members[position]}"


class _Member(NamedTuple):
    name: str
    start: int
    size: int


def is_pattern(source: str) -> bool:
    """Return whether a text names several files: `shards-{000..012}.tar`, `shards-*.tar`."""
    return any(character in source for character in "*?[{")


def tar_shards(source: str, label_key: str | None = None) -> Source:
    """Open a tar file, a folder of them, or a pattern with braces or wildcards.

    The name of a shard, or of its folder, decides its split.

    Args:
        source: path or pattern.
        label_key: field of a sample's `.json` that holds the label. None: the number in `.cls`, or
            without a `.cls` the field `label` of `.json`.

    Raises:
        ConfigError: if no shard is there.
        DatasetError: if a shard is damaged, or a sample has no label or not one image.
    """
    shards = _find(source)
    root = Path(os.path.commonpath([path.parent for path in shards]))
    found, ignored_splits = choose_splits(group_by_split(shards, root))
    splits: dict[str, Split] = {}
    ignored_files: list[str] = []
    for split, paths in found.items():
        splits[split] = _open_shards(paths, label_key, ignored_files)
    # Pattern or path: it finds the same shards from any working folder.
    identity = {
        "kind": "webdataset",
        "path": os.path.abspath(source),  # noqa: PTH100  (a pattern is no Path)
        "content": files_digest(found),
    }
    stated = _class_names({path.parent for path in shards} | {root})
    class_names = resolve_class_names(source, [split.labels for split in splits.values()], stated)
    return Source(
        splits, class_names, identity, ignored_files=ignored_files, ignored_splits=ignored_splits
    )


def _find(source: str) -> list[Path]:
    """Return the shards in the order of the braces, or by name for wildcards and folders."""
    from braceexpand import braceexpand

    path = Path(source)
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.suffix.lower() == ".tar")
    if path.is_file():  # whatever its name: `photos[1].tar` is no pattern then
        return [path.resolve()]
    try:
        names = list(braceexpand(source))
    except ValueError as error:
        raise ConfigError(
            f"SOURCE is {source}, expected braces such as shards-{{000..012}}.tar: {error}"
        ) from error
    shards: list[Path] = []
    for name in names:
        matches = sorted(glob.glob(name)) if set(name) & set("*?[") else [name]  # noqa: PTH207
        missing = [match for match in matches if not Path(match).is_file()]
        if missing or not matches:
            raise ConfigError(
                f"SOURCE is {source}, expected existing shards. {(missing or [name])[0]} does not "
                "exist"
            )
        shards += [Path(match).resolve() for match in matches]
    return shards


def _open_shards(paths: list[Path], label_key: str | None, ignored_files: list[str]) -> TarSplit:
    shard_of: list[int] = []
    byte_ranges: list[tuple[int, int]] = []
    members: list[str] = []
    labels: list[int] = []
    for number, path in enumerate(paths):
        with path.open("rb") as file:
            for key, parts in _samples(path, file, ignored_files).items():
                images = [name for name in parts if name in IMAGE_EXTENSIONS]
                if not images and not {"cls", "json"} & parts.keys():
                    ignored_files += [f"{path}, {member.name}" for member in parts.values()]
                    continue
                if len(images) != 1:
                    raise DatasetError(
                        f"sample {key} in {path} has {len(images)} images ({', '.join(parts)}), "
                        f"expected one of {', '.join(sorted(IMAGE_EXTENSIONS))}"
                    )
                image = parts[images[0]]
                labels.append(_label(path, file, key, parts, label_key))
                shard_of.append(number)
                byte_ranges.append((image.start, image.size))
                members.append(image.name)
    if not labels:
        raise DatasetError(f"{paths[0]} holds no samples, expected images with .cls or .json")
    return TarSplit(
        paths,
        np.array(shard_of, dtype=np.int32),
        np.array(byte_ranges, dtype=np.int64),
        members,
        np.array(labels, dtype=np.int64),
    )


def _samples(path: Path, file: BinaryIO, ignored_files: list[str]) -> dict[str, dict[str, _Member]]:
    """Return sample key -> extension -> member, in the order of the members in the shard."""
    samples: dict[str, dict[str, _Member]] = {}
    for entry in _entries(path, file):
        folder, _, name = entry.name.rpartition("/")
        key, _, extension = name.partition(".")
        if entry.isdir():
            continue
        if not key or not extension:  # such as the ._NAME that macOS adds
            ignored_files.append(f"{path}, {entry.name}")
            continue
        if not entry.isreg() or entry.issparse():
            raise DatasetError(
                f"{path}, {entry.name} is a link or a special file, expected plain files. Write "
                "the shard again with their content (tar --dereference)"
            )
        parts = samples.setdefault(f"{folder}/{key}" if folder else key, {})
        if extension.lower() in parts:
            raise DatasetError(
                f"{path} holds {entry.name} twice, expected unique names. Write the shard again"
            )
        parts[extension.lower()] = _Member(entry.name, entry.offset_data, entry.size)
    return samples


def _entries(path: Path, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar file, and check that it is complete."""
    remedy = "Copy the shard again"
    try:
        # Only plain tar: the members of a compressed file have no offset to read from.
        with tarfile.open(fileobj=file, mode="r:") as archive:
            end = path.stat().st_size
            while (entry := archive.next()) is not None:
                if entry.offset_data + entry.size > end:
                    raise DatasetError(f"{path} ends inside {entry.name}. {remedy}")
                yield entry
                # Otherwise a million of them would stay in memory.
                archive.members.clear()  # type: ignore[attr-defined]
            # tarfile takes damage for the end; the format ends with empty blocks.
            file.seek(archive.offset)
            if file.read(_BLOCK_BYTES).strip(b"\0") or archive.offset >= end:
                raise DatasetError(
                    f"{path} is damaged or cut off at byte {archive.offset:,} of {end:,}, expected "
                    f"a tar file with its end. {remedy}"
                )
    except tarfile.TarError as error:
        raise DatasetError(
            f"{path} is not readable as a plain tar file ({error}). A compressed one (.tar.gz) is "
            "to be unpacked with gunzip first"
        ) from error


def _label(
    path: Path, file: BinaryIO, key: str, parts: dict[str, _Member], label_key: str | None
) -> int:
    """Return a sample's label from its `.cls`, or from a field of its `.json`."""
    part = parts.get("cls") if label_key is None else None
    part = part or parts.get("json")
    if part is None:
        expected = "NAME.cls or NAME.json" if label_key is None else "NAME.json"
        raise DatasetError(
            f"sample {key} in {path} has no label ({', '.join(parts)}), expected {expected} beside "
            "the image"
        )
    file.seek(part.start)
    text = file.read(part.size)
    field = label_key or "label"
    try:
        value = int(text) if part is parts.get("cls") else json.loads(text)[field]
    except KeyError as error:
        raise ConfigError(
            parameter="label_key",
            value=label_key or "not given",
            rule=f"a field of {part.name} in {path}: {', '.join(json.loads(text))}",
        ) from error
    except (ValueError, TypeError):
        value = None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        shown = text[:40].decode("utf-8", "replace")
        raise DatasetError(
            f"{path}, {part.name} is {shown!r}, expected a label: a whole number from 0"
            + ("" if part is parts.get("cls") else f" as its field {field}")
        )
    return value


def _class_names(folders: set[Path]) -> list[str] | None:
    for folder in sorted(folders):
        for name in NAMES_FILES:
            if (folder / name).is_file():
                return (folder / name).read_text(encoding="utf-8").splitlines()
    return None


def _recognises(given: Argument) -> bool:
    # ImageNet's original archives often lie beside the folders that were unpacked from them.
    holds_images = given.path.is_dir() and bool(given.suffixes & IMAGE_SUFFIXES)
    names_shards = is_pattern(given.text) and not given.path.exists()
    return (".tar" in given.suffixes and not holds_images) or names_shards


KIND = SourceKind(
    "WebDataset shards",
    _recognises,
    lambda given, label_key: tar_shards(given.text, label_key),
    has_label_key=True,
)
