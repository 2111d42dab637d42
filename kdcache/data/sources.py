"""The sources that `kdcache pack` knows, by what the user writes."""

from __future__ import annotations

import os
from pathlib import Path

from kdcache.data.cifar import ARCHIVES, archive_named, cifar
from kdcache.data.digits import digits
from kdcache.data.hugging_face import PREFIX, hugging_face, is_saved_by_datasets
from kdcache.data.image_folder import IMAGE_SUFFIXES, image_folder
from kdcache.data.parquet import parquet
from kdcache.data.source import Source, add_val_split
from kdcache.data.tar_shards import is_pattern, tar_shards
from kdcache.errors import ConfigError, DatasetError

_KNOWN = (
    "`digits`, `cifar10`, `cifar100`, `hf:ORG/NAME`, a folder of images, image parquet, or "
    "WebDataset shards"
)
_PICKLED_CIFAR = {"cifar-10-batches-py": "cifar10", "cifar-100-python": "cifar100"}
"""Folders that torchvision unpacks -> the source with the same images."""


def open_source(
    source: str, *, val_source: str | None = None, label_key: str | None = None
) -> Source:
    """Open a source by its name, path or pattern.

    Args:
        source: what the user wrote.
        val_source: likewise, of a source whose only split is the evaluation split.
        label_key: column, or field of .json, that holds the label.

    Raises:
        ConfigError: if there is no such source, or an option does not go with it.
        DatasetError: if it holds no usable images.
    """
    opened = _open(source, label_key)
    if val_source is not None:
        opened = add_val_split(opened, _open(val_source, label_key))
    if "train" not in opened.splits:
        raise DatasetError(
            f"{source} holds an evaluation split alone, expected training images too. Name them, "
            f"and this as --val-source; or rename it if it is to be trained on"
        )
    return opened


def _open(source: str, label_key: str | None) -> Source:
    path = Path(source)
    if source.startswith(PREFIX) or is_saved_by_datasets(path):
        return hugging_face(source, label_key)
    held = _suffixes_below(path) if path.is_dir() else {path.suffix.lower()}
    if (path.is_dir() and ".parquet" in held) or (path.is_file() and not held & {".tar", ".gz"}):
        return parquet(path, label_key)
    # The original archives of ImageNet lie beside what was unpacked from them.
    holds_shards = ".tar" in held and not (path.is_dir() and held & IMAGE_SUFFIXES)
    if holds_shards or (is_pattern(source) and not path.exists()):
        return tar_shards(source, label_key)
    if label_key is not None:
        raise ConfigError(
            f"--label-key is {label_key}, but {source} has no columns or fields to choose from. "
            "Leave the option out",
            parameter="label_key",
            value=label_key,
        )
    return _open_without_key(source, path)


def _suffixes_below(folder: Path) -> set[str]:
    """Return the suffixes of all files below a folder, of which there may be millions."""
    return {
        os.path.splitext(name)[1].lower()  # noqa: PTH122
        for _, _, names in os.walk(folder)
        for name in names
    }


def _open_without_key(source: str, path: Path) -> Source:
    if source == "digits":
        return digits()
    if source in ARCHIVES:
        return cifar(ARCHIVES[source])
    if not path.exists():
        raise ConfigError(f"SOURCE is {source}, expected {_KNOWN}. {path.resolve()} does not exist")
    if path.is_file():
        archive = archive_named(path)
        if archive is None:
            names = ", ".join(Path(known.url).name for known in ARCHIVES.values())
            raise ConfigError(
                f"SOURCE is {source}, expected {_KNOWN}. Of compressed archives those of CIFAR are "
                f"known: {names}; unpack others"
            )
        return cifar(archive, path)
    for name, same in _PICKLED_CIFAR.items():
        if path.name == name or (path / name).is_dir():
            raise ConfigError(
                f"SOURCE is {source}, which holds pickles; kdcache opens none. Run: kdcache pack "
                f"{same}"
            )
    return image_folder(path)
