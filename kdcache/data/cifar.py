"""Read CIFAR-10 and CIFAR-100 from the publisher's binary archives, which hold no Python objects.

torchvision reads the publisher's archives of pickles, which hold the same images in the same order.

References:
    A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009;
    https://www.cs.toronto.edu/~kriz/cifar.html has the archives, their md5 and their layout.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from kdcache.data.source import Source
from kdcache.data.source_kind import Argument, SourceKind
from kdcache.errors import ConfigError, DatasetError
from kdcache.files import make_directory, replace_atomically, sweep_partials, this_process
from kdcache.progress import logger, progress_bar

_PICKLED_CIFAR = {"cifar-10-batches-py": "cifar10", "cifar-100-python": "cifar100"}
"""Folders that torchvision unpacks -> the source with the same images."""

SIDE = 32
_PIXEL_BYTES = 3 * SIDE * SIDE
_TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class Archive:
    """One of the publisher's archives."""

    kind: str
    url: str
    md5: str
    """Hex md5 of the archive, as published."""
    train: tuple[str, ...]
    val: str
    names: str
    """Member that lists the class names, one per line."""
    label_bytes: int
    """Number of label bytes before the pixels of a record; the last one is the class."""

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the members that are read."""
        return (*self.train, self.val, self.names)


_PUBLISHER = "https://www.cs.toronto.edu/~kriz"

ARCHIVES = {
    "cifar10": Archive(
        kind="cifar10",
        url=f"{_PUBLISHER}/cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        train=tuple(f"cifar-10-batches-bin/data_batch_{number}.bin" for number in range(1, 6)),
        val="cifar-10-batches-bin/test_batch.bin",
        names="cifar-10-batches-bin/batches.meta.txt",
        label_bytes=1,
    ),
    "cifar100": Archive(
        kind="cifar100",
        url=f"{_PUBLISHER}/cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        train=("cifar-100-binary/train.bin",),
        val="cifar-100-binary/test.bin",
        names="cifar-100-binary/fine_label_names.txt",
        label_bytes=2,  # the superclass, and the class
    ),
}


@dataclass(frozen=True)
class CifarSplit:
    """A split in the publisher's record files. Pixels are read from the files on demand."""

    kind: str
    files: list[Path]
    starts: npt.NDArray[np.int64]
    """(files + 1,) position of a file's first record; the last entry is the number of records."""
    label_bytes: int
    labels: npt.NDArray[np.int64]

    def read(self, position: int) -> bytes:
        """Return the image at `position` as a PPM file."""
        file = int(np.searchsorted(self.starts, position, side="right")) - 1
        record = self.label_bytes + _PIXEL_BYTES
        start = (position - int(self.starts[file])) * record + self.label_bytes
        planes = np.fromfile(self.files[file], dtype=np.uint8, count=_PIXEL_BYTES, offset=start)
        pixels = planes.reshape(3, SIDE, SIDE).transpose(1, 2, 0)
        return f"P6 {SIDE} {SIDE} 255\n".encode() + pixels.tobytes()

    def name(self, position: int) -> str:
        """Return the image's index in the published order, which torchvision uses too."""
        return f"{self.kind}[{position}]"


def cifar(archive: Archive, file: Path | None = None) -> Source:
    """Open CIFAR; its archive is downloaded once, checked and unpacked to the user's cache folder.

    Args:
        archive: the archive to open.
        file: path of the archive if it is already on this machine; None: it is downloaded.

    Raises:
        DatasetError: if the archive cannot be downloaded, or its content is not as published.
    """
    folder = downloads() / f"{archive.kind}-{archive.md5[:8]}"
    if not folder.is_dir():
        _unpack(archive, _checked(archive, file) if file else _download(archive), folder)
    train = _open_records(archive, [folder / name for name in archive.train])
    val = _open_records(archive, [folder / archive.val])
    class_names = (folder / archive.names).read_text(encoding="ascii").split()
    top = max(int(split.labels.max()) for split in (train, val))
    if top >= len(class_names):
        raise DatasetError(
            f"{folder} has the label {top}, expected labels below {len(class_names)}. Remove the "
            "folder and pack again"
        )
    return Source(
        {"train": train, "val": val}, class_names, {"kind": archive.kind, "content": archive.md5}
    )


def downloads() -> Path:
    """Return the folder of downloads, which all workspaces of a user share."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "kdcache" / "downloads"


def archive_named(path: Path) -> Archive | None:
    """Return the archive that has this file name, or None."""
    for archive in ARCHIVES.values():
        if path.name == archive.url.rpartition("/")[2]:
            return archive
    return None


def _download(archive: Archive) -> Path:
    """Return the archive's path in the cache folder, downloaded and checked."""
    path = downloads() / archive.url.rpartition("/")[2]
    if path.exists():
        return _checked(archive, path)
    logger.info("downloading %s to %s", archive.url, path.parent)
    try:
        with (
            urllib.request.urlopen(archive.url, timeout=_TIMEOUT_SECONDS) as answer,  # noqa: S310
            replace_atomically(path) as partial,
            partial.open("wb") as file,
        ):
            _copy(answer, file, int(answer.headers.get("Content-Length") or 0), archive.kind)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise DatasetError(
            f"{archive.url} cannot be downloaded ({reason}). Copy the file from another machine "
            f"and run: kdcache pack FOLDER/{path.name}"
        ) from error
    return _checked(archive, path)


def _copy(answer: BinaryIO, file: BinaryIO, total: int, kind: str) -> None:
    with progress_bar(total=total, unit="byte", description=f"download {kind}") as bar:
        while block := answer.read(1 << 20):
            file.write(block)
            bar.update(len(block))


def _checked(archive: Archive, path: Path) -> Path:
    """Check that an archive has the published md5, and return its path."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != archive.md5:
        raise DatasetError(
            f"{path} has the md5 {found}, expected {archive.md5} as published. "
            f"Remove it and download it again from {archive.url}"
        )
    return path


def _unpack(archive: Archive, path: Path, folder: Path) -> None:
    """Unpack the members that are needed to `folder`, which appears complete or not at all."""
    make_directory(folder.parent)
    sweep_partials(folder.parent)
    with TemporaryDirectory(
        prefix=f".{folder.name}.", suffix=f".{this_process()}.partial", dir=folder.parent
    ) as partial:
        whole = Path(partial, "whole")
        with tarfile.open(path, mode="r:gz") as file:
            for name in archive.members:
                source = file.extractfile(name)
                if source is None:
                    raise DatasetError(f"{path} holds {name} as a link, expected a file")
                target = whole / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as copy:
                    shutil.copyfileobj(source, copy)
        whole.replace(folder)
    if path.parent == folder.parent:
        path.unlink()  # it was downloaded here, and everything in it that is needed is unpacked


def _open_records(archive: Archive, files: list[Path]) -> CifarSplit:
    record = archive.label_bytes + _PIXEL_BYTES
    labels = []
    for path in files:
        content = np.memmap(path, dtype=np.uint8, mode="r")
        if len(content) % record:
            raise DatasetError(
                f"{path} has {len(content):,} bytes, expected records of {record:,}. Remove "
                f"{path.parent.parent} and pack again"
            )
        labels.append(content.reshape(-1, record)[:, archive.label_bytes - 1].astype(np.int64))
    starts = np.cumsum([0, *map(len, labels)])
    return CifarSplit(archive.kind, files, starts, archive.label_bytes, np.concatenate(labels))


def _recognises(given: Argument) -> bool:
    is_archive = given.path.is_file() and archive_named(given.path) is not None
    return given.text in ARCHIVES or is_archive or _pickled(given.path) is not None


def _open(given: Argument, _label_key: str | None) -> Source:
    if given.text in ARCHIVES:
        return cifar(ARCHIVES[given.text])
    if same := _pickled(given.path):
        raise ConfigError(
            f"SOURCE is {given.text}, which holds pickles; kdcache opens none. Run: kdcache pack "
            f"{same}"
        )
    archive = archive_named(given.path)
    assert archive is not None  # noqa: S101  (_recognises has checked)
    return cifar(archive, given.path)


def _pickled(folder: Path) -> str | None:
    """Return the source with the same images as a folder that torchvision unpacked, or None."""
    for name, same in _PICKLED_CIFAR.items():
        if folder.is_dir() and (folder.name == name or (folder / name).is_dir()):
            return same
    return None


_FILES = ", ".join(Path(archive.url).name for archive in ARCHIVES.values())

KIND = SourceKind(
    f"cifar10, cifar100 or their archives ({_FILES})",
    _recognises,
    _open,
)
