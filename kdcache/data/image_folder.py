"""One folder per class, as torchvision's ImageFolder reads it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdcache.data.source import SPLITS, Source, Split
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
    """Open SOURCE/train/CLASS/* with SOURCE/val|validation|test/CLASS/*, or SOURCE/CLASS/*.

    Classes are the folder names in sorted order, as in torchvision's ImageFolder; files below them
    are found at any depth.
    """
    folders = {SPLITS[name]: root / name for name in reversed(SPLITS) if (root / name).is_dir()}
    if "train" not in folders:
        folders = {"train": root}
    class_names = _class_folders(folders["train"])
    splits: dict[str, Split] = {}
    left_out: list[str] = []
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
            for path in sorted((folder / class_name).rglob("*")):
                if path.is_dir():
                    continue
                if path.suffix.lower() not in IMAGE_SUFFIXES:
                    left_out.append(str(path))
                    continue
                files.append(str(path.relative_to(folder)))
                labels.append(label)
                stat = path.stat()
                listing.update(f"{split}/{files[-1]}:{stat.st_size}:{stat.st_mtime_ns}\n".encode())
        if not files:
            raise DatasetError(
                f"{folder} holds no images, expected {folder}/CLASS/*.jpg (or another of "
                f"{', '.join(sorted(IMAGE_SUFFIXES))})"
            )
        splits[split] = FolderSplit(folder.resolve(), files, np.array(labels, dtype=np.int64))
    identity = {"kind": "folder", "path": str(root.resolve()), "content": listing.hexdigest()}
    return Source(splits, class_names, identity, left_out=left_out)


def _class_folders(folder: Path) -> list[str]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if not names:
        raise DatasetError(
            f"{folder} holds no class folders, expected an ImageFolder ({folder}/CLASS/*.jpg) or "
            "image parquet"
        )
    return names
