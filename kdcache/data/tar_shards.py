"""Read WebDataset shards: tar files in which the members of a sample share a name.

`0001.jpg` and `0001.cls` are an image and its label. Nothing is unpacked: an image is read from its
offset in the tar file. Only images, `.cls` and `.json` are ever read; links are not followed, and
members of other kinds, such as pickles, are never opened.

References:
    The WebDataset format: https://github.com/webdataset/webdataset
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from kdcache.data.classes import Part, read_names_file, unify
from kdcache.data.file_content import HEAD_BYTES, describe_content, image_format, is_tar, read_head
from kdcache.data.shards import find_shards, is_pattern
from kdcache.data.source import LeftOut, Source, Split, files_digest, merge_left_out
from kdcache.data.source_kind import Argument, SourceKind
from kdcache.errors import ConfigError, DatasetError

IMAGE_EXTENSIONS = frozenset(
    {
        *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "ppm", "pgm", "pbm", "bmp", "gif", "tif"),
        *("tiff", "avif", "jp2"),
    }
)
COMPRESSED = (".tgz", ".tar.gz", ".tbz", ".tar.bz2", ".txz", ".tar.xz", ".tzst", ".tar.zst")
"""Endings of compressed tar files, whose members cannot be read by their offset."""

_LABELS = frozenset({"cls", "json"})

_BLOCK_BYTES = 512
_SCAN_BYTES = 1 << 20


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
    shards = find_shards(source, lambda name: _is_tar(name) or is_compressed(name))
    left_out = list(shards.left_out)
    parts: dict[str, list[Part]] = {}
    opened: dict[str, TarSplit] = {}
    for split, paths in shards.splits.items():
        opened[split], of_shards = _open_shards(paths, label_key, left_out)
        parts[split] = [
            Part(str(path), labels, read_names_file(path.parent, shards.root))
            for path, labels in zip(paths, of_shards, strict=True)
        ]
    unified = unify(parts)
    splits: dict[str, Split] = {
        split: replace(found, labels=np.concatenate(unified.labels[split]))
        for split, found in opened.items()
    }
    # Pattern or path: it finds the same shards from any working folder.
    identity = {
        "kind": "webdataset",
        "path": os.path.abspath(source),  # noqa: PTH100  (a pattern is no Path)
        "content": files_digest(shards.splits),
    }
    return Source(
        splits,
        unified.class_names,
        identity,
        left_out=merge_left_out(left_out),
        notes=[*shards.notes, *unified.notes],
    )


def is_compressed(name: str) -> bool:
    """Return whether a file is called a compressed tar file."""
    return name.lower().endswith(COMPRESSED)


def _is_tar(name: str) -> bool:
    return name.lower().endswith(".tar")


def _open_shards(
    paths: list[Path], label_key: str | None, left_out: list[LeftOut]
) -> tuple[TarSplit, list[npt.NDArray[np.int64]]]:
    """Return a split without its final labels, and the labels of each shard."""
    shard_of: list[int] = []
    byte_ranges: list[tuple[int, int]] = []
    members: list[str] = []
    labels: list[npt.NDArray[np.int64]] = []
    for number, path in enumerate(paths):
        if is_compressed(path.name):
            raise DatasetError(f"{path} is a compressed shard. Unpack it with gunzip first")
        of_shard: list[int] = []
        with path.open("rb") as file:
            shard = _Shard(path, file)
            for key, parts in shard.samples():
                image = shard.image_of(key, parts)
                of_shard.append(_label(path, file, key, parts, label_key))
                shard_of.append(number)
                byte_ranges.append((image.start, image.size))
                members.append(image.name)
        labels.append(np.array(of_shard, dtype=np.int64))
        left_out += [
            LeftOut(why, tuple(f"{path}, {name}" for name in names))
            for why, names in shard.left_out.items()
        ]
    if not members:
        raise DatasetError(f"{paths[0]} holds no samples, expected images with .cls or .json")
    split = TarSplit(
        paths,
        np.array(shard_of, dtype=np.int32),
        np.array(byte_ranges, dtype=np.int64),
        members,
        np.concatenate(labels),
    )
    return split, labels


class _Shard:
    """The samples of one shard.

    Attributes:
        left_out: reason -> members that belong to no sample.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file = file
        self.left_out: dict[str, list[str]] = {}

    def samples(self) -> list[tuple[str, dict[str, _Member]]]:
        """Return key and extension -> member of every sample, in the order of the shard.

        As in WebDataset, a key ends at the first dot. But if `a.1.jpg` stands beside `a.1.cls`, or
        sample `a` itself has no image and no label, then the key is `a.1`.
        """
        plain: dict[str, dict[str, _Member]] = {}
        dotted: dict[str, dict[str, _Member]] = {}
        order: dict[str, None] = {}
        for member in self._members():
            folder, _, name = member.name.rpartition("/")
            key, _, extension = name.partition(".")
            if not key or not extension:  # such as the ._NAME that macOS adds
                self._leave_out("without a key or an extension", member)
                continue
            groups, kind = plain, extension.lower()
            last = kind.rpartition(".")[2]
            if last != kind and last in IMAGE_EXTENSIONS | _LABELS:
                groups, kind, key = dotted, last, name.rpartition(".")[0]
            key = f"{folder}/{key}" if folder else key
            parts = groups.setdefault(key, {})
            if kind in parts:
                raise DatasetError(
                    f"{self.path} holds {member.name} twice, expected unique names. Write the "
                    "shard again"
                )
            parts[kind] = member
            order.setdefault(key)
        return [(key, plain[key]) for key in self._chosen(plain, dotted, order)]

    def _chosen(
        self,
        plain: dict[str, dict[str, _Member]],
        dotted: dict[str, dict[str, _Member]],
        order: dict[str, None],
    ) -> list[str]:
        """Return the keys of the samples; the parts of dotted keys are added to `plain`."""
        for key, parts in dotted.items():
            is_sample = "cls" in parts and len(parts) > 1
            if is_sample or not self._has_image_or_label(_first_key(key), plain):
                known = plain.setdefault(key, {})
                for extension, member in parts.items():
                    known.setdefault(extension, member)
            else:
                for member in parts.values():
                    self._leave_out("further parts of a sample", member)
        chosen = []
        for key in order:
            if key not in plain:
                continue
            if self._has_image_or_label(key, plain):
                chosen.append(key)
            else:
                for member in plain[key].values():
                    self._leave_out("without an image or a label", member)
        return chosen

    def _has_image_or_label(self, key: str, samples: dict[str, dict[str, _Member]]) -> bool:
        return bool(samples.get(key, {}).keys() & (IMAGE_EXTENSIONS | _LABELS))

    def _leave_out(self, why: str, member: _Member) -> None:
        self.left_out.setdefault(why, []).append(member.name)

    def image_of(self, key: str, parts: dict[str, _Member]) -> _Member:
        """Return the only image of a sample; a member of an unknown extension may be one."""
        images = [name for name in parts if name in IMAGE_EXTENSIONS]
        if not images:
            images = [name for name in parts if name not in _LABELS and self._is_image(parts[name])]
        if len(images) != 1:
            raise DatasetError(
                f"sample {key} in {self.path} has {len(images)} images ({', '.join(parts)}), "
                f"expected one of {', '.join(sorted(IMAGE_EXTENSIONS))}"
            )
        return parts[images[0]]

    def _is_image(self, member: _Member) -> bool:
        self.file.seek(member.start)
        return image_format(self.file.read(min(member.size, HEAD_BYTES))) is not None

    def _members(self) -> Iterator[_Member]:
        for entry in _entries(self.path, self.file):
            if entry.isdir():
                continue
            if entry.name.rpartition("/")[2].startswith("."):
                self.left_out.setdefault("hidden", []).append(entry.name)
                continue
            if not entry.isreg() or entry.issparse():
                raise DatasetError(
                    f"{self.path}, {entry.name} is a link or a special file, expected plain files. "
                    "Write the shard again with their content (tar --dereference)"
                )
            yield _Member(entry.name, entry.offset_data, entry.size)


def _first_key(key: str) -> str:
    """Return the key up to the first dot of its last part."""
    folder, slash, name = key.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _entries(path: Path, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar file, or of several joined by `cat`; check that all is read."""
    remedy = "Copy the shard again"
    size = path.stat().st_size
    start = 0
    try:
        while start < size or start == 0:
            file.seek(start)
            # Only plain tar: the members of a compressed file have no offset to read from.
            with tarfile.open(fileobj=file, mode="r:") as archive:
                while (entry := archive.next()) is not None:
                    if entry.offset_data + entry.size > size:
                        raise DatasetError(f"{path} ends inside {entry.name}. {remedy}")
                    yield entry
                    # Otherwise a million of them would stay in memory.
                    archive.members.clear()  # type: ignore[attr-defined]
                end = archive.offset
            # tarfile takes damage for the end; the format ends with empty blocks.
            file.seek(end)
            if file.read(_BLOCK_BYTES).strip(b"\0") or end >= size:
                raise DatasetError(
                    f"{path} is damaged or cut off at byte {end:,} of {size:,}, expected a tar "
                    f"file with its end. {remedy}"
                )
            start = _next_content(file, end)
            file.seek(start)
            if start < size and not _is_header(file.read(_BLOCK_BYTES)):
                raise DatasetError(
                    f"{path} has {size - start:,} bytes after its end, from byte {start:,} on, "
                    f"which are no tar file. {remedy}"
                )
    except tarfile.TarError as error:
        content = None if is_tar(head := read_head(path)) else describe_content(head)
        reason = content or f"is not readable as a plain tar file ({error})"
        raise DatasetError(
            f"{path} {reason}. Expected a plain tar file; unpack a compressed one with gunzip first"
        ) from error


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return True


def _next_content(file: BinaryIO, start: int) -> int:
    """Return the offset of the first block from `start` on that is not empty, or of the end."""
    file.seek(start)
    offset = start
    while block := file.read(_SCAN_BYTES):
        if kept := block.lstrip(b"\0"):
            return (offset + len(block) - len(kept)) // _BLOCK_BYTES * _BLOCK_BYTES
        offset += len(block)
    return offset


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


def _recognises(given: Argument) -> bool:
    if is_pattern(given.text) and not given.path.exists():
        return not given.text.lower().endswith(".parquet")
    if not given.path.is_dir():
        return given.path.is_file() and _is_tar(given.text)
    # ImageNet's original archives often lie beside the folders that were unpacked from them.
    return not given.holds_class_folders and any(
        _is_tar(name) or is_compressed(name) for name in given.endings
    )


KIND = SourceKind(
    "WebDataset shards",
    _recognises,
    lambda given, label_key: tar_shards(given.text, label_key),
    has_label_key=True,
)
