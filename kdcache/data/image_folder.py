"""Read images from one folder per class, as torchvision's ImageFolder does."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdcache.data.source import EVALUATION_NAMES, Source, Split, choose_splits
from kdcache.data.source_kind import SourceKind
from kdcache.errors import DatasetError

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"}
)


@dataclass(frozen=True)
class FolderSplit:
    """Image files below one folder per class."""

    root: Path
    files: list[str]
    """Paths relative to `root`."""
    labels: npt.NDArray[np.int64]

    def read(self, position: int) -> bytes:
        """Return the file's bytes."""
        return (self.root / self.files[position]).read_bytes()

    def name(self, position: int) -> str:
        """Return the file's path."""
        return str(self.root / self.files[position])


def image_folder(root: Path) -> Source:
    """Open SOURCE/train/CLASS/* with SOURCE/val/CLASS/*, or SOURCE/CLASS/*.

    The classes are the folder names in sorted order, as in torchvision's ImageFolder. Files are
    found at any depth below them. Hidden folders are not classes. The evaluation folder may have
    any name of `EVALUATION_NAMES`.

    Raises:
        DatasetError: if there are no class folders, a class of the training split has no image, or
            the evaluation split has another class.
    """
    found = {name: root / name for name in ("train", *EVALUATION_NAMES) if (root / name).is_dir()}
    folders, ignored_splits = choose_splits(found)
    if "train" not in folders:
        if found and set(_class_folders(root)) <= set(EVALUATION_NAMES):
            raise DatasetError(
                f"{root} holds {', '.join(found)} and no train, expected {root}/train/CLASS/*.jpg "
                f"beside it. To open only an evaluation split, name {folders['val']}"
            )
        folders, ignored_splits = {"train": root}, []
    class_names = _class_folders(folders["train"])
    splits: dict[str, Split] = {}
    ignored_files: list[str] = []
    listing = hashlib.sha256()
    for split, folder in folders.items():
        unknown = sorted(set(_class_folders(folder)) - set(class_names))
        if unknown:
            raise DatasetError(
                f"{folder} has the class folder {unknown[0]}, expected one of the "
                f"{len(class_names):,} classes of {folders['train']}"
            )
        files: list[str] = []
        labels: list[int] = []
        for label, class_name in enumerate(class_names):
            before = len(files)
            for file in _files_below(folder, class_name):
                if os.path.splitext(file)[1].lower() not in IMAGE_SUFFIXES:  # noqa: PTH122  (fast)
                    ignored_files.append(str(folder / file))
                    continue
                files.append(file)
                try:
                    stat = os.stat(folder / file)  # noqa: PTH116
                except FileNotFoundError as error:
                    raise DatasetError(
                        f"{folder / file} is a broken link, expected an image. Mount or copy the "
                        "file that it points to, or remove the link"
                    ) from error
                listing.update(f"{split}/{file}:{stat.st_size}:{stat.st_mtime_ns}\n".encode())
            if split == "train" and len(files) == before:
                raise DatasetError(
                    f"{folder / class_name} holds no images, expected {folder}/CLASS/*.jpg (or "
                    f"another of {', '.join(sorted(IMAGE_SUFFIXES))}). Remove it if it is no class"
                )
            labels += [label] * (len(files) - before)
        if not files:
            raise DatasetError(f"{folder} holds no images, expected {folder}/CLASS/*.jpg")
        splits[split] = FolderSplit(folder.resolve(), files, np.array(labels, dtype=np.int64))
    identity = {"kind": "folder", "path": str(root.resolve()), "content": listing.hexdigest()}
    return Source(
        splits, class_names, identity, ignored_files=ignored_files, ignored_splits=ignored_splits
    )


def _class_folders(folder: Path) -> list[str]:
    entries = sorted(folder.iterdir())
    names = [path.name for path in entries if path.is_dir() and not path.name.startswith(".")]
    if not names:
        flat = any(path.suffix.lower() in IMAGE_SUFFIXES for path in entries)
        raise DatasetError(
            f"{folder} holds {'images but ' if flat else ''}no class folders, expected an "
            f"ImageFolder ({folder}/CLASS/*.jpg), shards (*.tar) or image parquet"
        )
    return names


def _files_below(root: Path, folder: str) -> Iterator[str]:
    """Yield the files below `root/folder` relative to `root`, sorted folder by folder.

    Links to folders are yielded but not followed, because they may form a cycle.
    """
    found = []
    for path, folders, names in os.walk(root / folder):
        below = os.path.relpath(path, root)
        links = [name for name in folders if os.path.islink(f"{path}/{name}")]  # noqa: PTH114
        found += [f"{below}/{name}" for name in names + links]
    yield from sorted(found, key=lambda file: file.split("/"))


KIND = SourceKind(
    "a folder of images",
    lambda given: given.path.is_dir(),
    lambda given, _label_key: image_folder(given.path),
)
