"""Define the interface of image sources; each kind of source has its own file.

A source yields the encoded bytes of a file, never pixels: the packer decodes them in its
worker processes, so a source must be picklable.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from kdcache.errors import ConfigError
from kdcache.rng import generator


class Split(Protocol):
    """The images of one split, in a fixed order. Picklable."""

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """(N,) in [0, C)."""

    def read(self, position: int) -> bytes:
        """Return the encoded image file at `position`."""

    def name(self, position: int) -> str:
        """Return the name of the image at `position`, such as its path."""


@dataclass(frozen=True)
class LeftOut:
    """Files or splits of a source that are not packed, with the reason."""

    why: str
    """The reason, such as "not images"."""
    names: tuple[str, ...]
    """Every file or split."""
    remedy: str = ""
    """What to do if they are meant."""


def merge_left_out(entries: Iterable[LeftOut]) -> list[LeftOut]:
    """Return one entry for each reason; entries without names are dropped."""
    merged: dict[tuple[str, str], tuple[str, ...]] = {}
    for entry in entries:
        key = (entry.why, entry.remedy)
        merged[key] = merged.get(key, ()) + entry.names
    return [LeftOut(why, names, remedy) for (why, remedy), names in merged.items() if names]


@dataclass(frozen=True)
class Source:
    """A data set before packing."""

    splits: dict[str, Split]
    """`train`, and `val` if the source has it. A source that is only an evaluation split has only
    `val`."""
    class_names: list[str]
    """Names of the classes in label order. Empty if the source has only numbers; `open_source`
    names the classes by number then."""
    identity: dict[str, Any]
    """JSON content that identifies the source; it changes when the source changes."""
    default_val_fraction: float | None = None
    """Default fraction that becomes `val` if the source has no such split."""
    default_policy: str | None = None
    """View policy that suits this source, if the image size is not enough to choose one."""
    left_out: list[LeftOut] = field(default_factory=list)
    """What is not packed, one entry for each reason."""
    notes: list[str] = field(default_factory=list)
    """How the source was understood, where its names leave a doubt. One sentence each."""

    @property
    def where(self) -> str:
        """The argument that opens this source again."""
        where: str = self.identity.get("path", self.identity["kind"])
        return where


def files_digest(files: Mapping[str, Iterable[Path]]) -> str:
    """Return a hex sha256 over the name, size and modification time of every file."""
    content = hashlib.sha256()
    for split, paths in files.items():
        for path in paths:
            stat = path.stat()
            name = os.fsencode(f"{split}/{path.name}")
            content.update(name + f":{stat.st_size}:{stat.st_mtime_ns}\n".encode())
    return content.hexdigest()


@dataclass(frozen=True)
class RelabelledSplit:
    """A split whose labels are replaced."""

    base: Split
    labels: npt.NDArray[np.int64]

    def read(self, position: int) -> bytes:
        """Return the encoded image file at `position`."""
        return self.base.read(position)

    def name(self, position: int) -> str:
        """Return the name of the image at `position`."""
        return self.base.name(position)


@dataclass(frozen=True)
class PickedSplit:
    """A selection of another split's images, in the given order."""

    base: Split
    positions: npt.NDArray[np.int64]

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """(N,) labels of the picked images."""
        return self.base.labels[self.positions]

    def read(self, position: int) -> bytes:
        """Return the encoded image file at `position`."""
        return self.base.read(int(self.positions[position]))

    def name(self, position: int) -> str:
        """Return the name of the image at `position`."""
        return self.base.name(int(self.positions[position]))


def reader_bytes(split: Split, image_bytes: int) -> int:
    """Return the memory that a process holds to read images of a split, in bytes.

    A split that holds more than one image has a method of this name.

    Args:
        split: any split.
        image_bytes: mean size of an image's file, in bytes.
    """
    while isinstance(split, (RelabelledSplit, PickedSplit)):
        split = split.base
    of_split = getattr(split, "reader_bytes", None)
    return 0 if of_split is None else int(of_split(image_bytes))


def split_off_validation(source: Source, fraction: float, seed: int) -> dict[str, Split]:
    """Divide a single split, class by class, into `train` and `val`.

    Args:
        source: a source that has only `train`.
        fraction: fraction per class that goes to `val`, in [0, 1); every class keeps at least one
            image for training.
        seed: seed of the draw named ("val-split", label).
    """
    train = source.splits["train"]
    if fraction == 0:
        return {"train": train}
    held_out = np.zeros(len(train.labels), dtype=bool)
    by_class = np.argsort(train.labels, kind="stable")
    found, starts = np.unique(train.labels[by_class], return_index=True)
    for label, members in zip(found.tolist(), np.split(by_class, starts[1:]), strict=True):
        count = min(int(np.floor(fraction * len(members) + 0.5)), max(len(members) - 1, 0))
        held_out[generator(seed, "val-split", label).permutation(members)[:count]] = True
    if not held_out.any():
        raise ConfigError(
            parameter="val_fraction",
            value=fraction,
            rule=f"one that takes at least one image of {len(train.labels)}",
            remedy="Use a larger one, or 0 for no evaluation split",
        )
    return {
        "train": PickedSplit(train, np.flatnonzero(~held_out)),
        "val": PickedSplit(train, np.flatnonzero(held_out)),
    }


def split_train_val(source: Source, val_fraction: float | None, seed: int) -> dict[str, Split]:
    """Return `train` and, unless the fraction is 0, `val` of a source.

    Args:
        source: a source with one split or both.
        val_fraction: fraction of the only split that becomes `val`, in [0, 1); the source's own
            default if None.
        seed: seed of the split.

    Raises:
        ConfigError: if a fraction is given although the source has both splits, none is given for
            a single split, or a seed is given although nothing is drawn.
    """
    is_divided = "val" in source.splits
    if is_divided and val_fraction is not None:
        raise ConfigError(
            parameter="val_fraction",
            value=val_fraction,
            problem=f"{source.where} has an evaluation split already",
            remedy="Leave the option out",
        )
    fraction = source.default_val_fraction if val_fraction is None else val_fraction
    if seed and (is_divided or fraction == 0):
        raise ConfigError(
            parameter="seed",
            value=seed,
            problem=(
                f"nothing is drawn from {source.where}, expected a --val-fraction above 0 with it"
            ),
            remedy="Leave it out",
        )
    if is_divided:
        return source.splits
    if fraction is None:
        raise ConfigError(
            f"{source.where} has one split, expected --val-fraction F in [0, 1) to divide it, or "
            "--val-source. Say --val-fraction 0 for no evaluation split (training then reports no "
            "accuracy)"
        )
    return split_off_validation(source, fraction, seed)
