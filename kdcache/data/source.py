"""What a source of images is, before packing; each kind of source has a file of its own.

A source yields the encoded bytes of a file, never pixels: decoding is the packer's business, in
its worker processes, so a source must pickle.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from kdcache.errors import ConfigError
from kdcache.rng import generator

SPLITS = {"train": "train", "val": "val", "validation": "val", "test": "val"}
"""Folder and file names of a split -> its name here; validation wins over test where both are."""


class Split(Protocol):
    """The images of one split, in a fixed order. Picklable."""

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """(N,) in [0, C)."""

    def read(self, position: int) -> bytes:
        """Return the encoded image file at `position`."""

    def name(self, position: int) -> str:
        """Return what a user would call the image at `position`, such as its path."""


@dataclass(frozen=True)
class Source:
    """A data set before packing."""

    splits: dict[str, Split]
    """`train`, and `val` where the source has it."""
    class_names: list[str]
    identity: dict[str, Any]
    """What tells this source from another or changed one; JSON."""
    default_val_fraction: float | None = None
    """Share that becomes `val` where the source has no such split and the user does not say."""
    default_policy: str | None = None
    """The view policy that suits this source, where the image size alone does not tell."""
    left_out: list[str] = field(default_factory=list)
    """Files of the source that are not images."""


@dataclass(frozen=True)
class PickedSplit:
    """Some of the images of another split, in the given order."""

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
        """Return what a user would call the image at `position`."""
        return self.base.name(int(self.positions[position]))


def split_off_validation(source: Source, fraction: float, seed: int) -> dict[str, Split]:
    """Divide a single split, class by class, into `train` and `val`.

    Args:
        source: a source that has only `train`.
        fraction: share of each class that goes to `val`, in [0, 1); each class keeps at least one
            image for training.
        seed: of the draw named ("val-split", label).
    """
    train = source.splits["train"]
    if fraction == 0:
        return {"train": train}
    held_out = np.zeros(len(train.labels), dtype=bool)
    for label in range(len(source.class_names)):
        members = np.flatnonzero(train.labels == label)
        count = min(int(np.floor(fraction * len(members) + 0.5)), max(len(members) - 1, 0))
        held_out[generator(seed, "val-split", label).permutation(members)[:count]] = True
    if not held_out.any():
        raise ConfigError(
            f"--val-fraction is {fraction}, expected one that takes at least one image of "
            f"{len(train.labels)}. Use a larger one, or 0 for no evaluation split"
        )
    return {
        "train": PickedSplit(train, np.flatnonzero(~held_out)),
        "val": PickedSplit(train, np.flatnonzero(held_out)),
    }


def divide(source: Source, val_fraction: float | None, seed: int) -> dict[str, Split]:
    """Return `train` and, unless the share is 0, `val` of a source.

    Args:
        source: with one split or both.
        val_fraction: share of the only split that becomes `val`, in [0, 1); the source's own
            default when None.
        seed: of the draw.

    Raises:
        ConfigError: if both splits are there and a share is given, or one is and none is given.
    """
    where = source.identity.get("path", source.identity["kind"])
    if "val" in source.splits:
        if val_fraction is not None:
            raise ConfigError(
                f"--val-fraction is {val_fraction}, but {where} has an evaluation split of its "
                "own. Leave the option out"
            )
        return source.splits
    fraction = source.default_val_fraction if val_fraction is None else val_fraction
    if fraction is None:
        raise ConfigError(
            f"{where} has one split, expected --val-fraction F in [0, 1) to divide it. "
            "Say --val-fraction 0 for no evaluation split (training then reports no accuracy)"
        )
    return split_off_validation(source, fraction, seed)
