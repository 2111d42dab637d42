"""Define the interface of image sources; each kind of source has its own file.

A source yields the encoded bytes of a file, never pixels: the packer decodes them in its
worker processes, so a source must be picklable.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from kdcache.errors import ConfigError, DatasetError
from kdcache.rng import generator

EVALUATION_NAMES = ("val", "valid", "validation", "dev", "eval", "test")
"""Names of an evaluation split, in order of preference."""

_SPLIT_IN_NAME = re.compile(rf"(?<![a-z0-9])(train|{'|'.join(EVALUATION_NAMES)})(?![a-z])")

Found = TypeVar("Found")


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
class Source:
    """A data set before packing."""

    splits: dict[str, Split]
    """`train`, and `val` if the source has it. A source that is only an evaluation split has only
    `val`."""
    class_names: list[str]
    identity: dict[str, Any]
    """JSON content that identifies the source; it changes when the source changes."""
    default_val_fraction: float | None = None
    """Default fraction that becomes `val` if the source has no such split."""
    default_policy: str | None = None
    """View policy that suits this source, if the image size is not enough to choose one."""
    ignored_files: list[str] = field(default_factory=list)
    """Files of the source that are not images and are ignored."""
    ignored_splits: list[str] = field(default_factory=list)
    """Names of further evaluation splits, which are ignored."""

    @property
    def where(self) -> str:
        """The argument that opens this source again."""
        where: str = self.identity.get("path", self.identity["kind"])
        return where


def choose_splits(found: Mapping[str, Found]) -> tuple[dict[str, Found], list[str]]:
    """Choose `train` and `val` from the splits that were found.

    Returns:
        `train` and `val`, in this order, as far as they were found; and the names of further
        evaluation splits.
    """
    evaluations = [name for name in EVALUATION_NAMES if name in found]
    chosen = {"train": found["train"]} if "train" in found else {}
    if evaluations:
        chosen["val"] = found[evaluations[0]]
    return chosen, evaluations[1:]


def split_name(parts: Iterable[str]) -> str:
    """Return the split in the first name that contains one; `train` if none does.

    Args:
        parts: parts of a path: the file's name, then its folders, innermost first.
    """
    for part in parts:
        if match := _SPLIT_IN_NAME.search(part.lower()):
            return match[1]
    return "train"


def group_by_split(files: Iterable[Path], root: Path) -> dict[str, list[Path]]:
    """Group files by the split that their path below `root` names; keep their order."""
    found: dict[str, list[Path]] = {}
    for path in files:
        parts = (path.name, *reversed(path.relative_to(root).parts[:-1]))
        found.setdefault(split_name(parts), []).append(path)
    return found


def files_digest(files: Mapping[str, Iterable[Path]]) -> str:
    """Return a hex sha256 over the name, size and modification time of every file."""
    content = hashlib.sha256()
    for split, paths in files.items():
        for path in paths:
            stat = path.stat()
            content.update(f"{split}/{path.name}:{stat.st_size}:{stat.st_mtime_ns}\n".encode())
    return content.hexdigest()


def add_val_split(source: Source, other: Source) -> Source:
    """Return `source` with the only split of another source as its evaluation split.

    Classes are matched by name, and by number if the other source has no names.

    Raises:
        ConfigError: if `source` has an evaluation split already, or the other has two splits.
        DatasetError: if the other has a class that `source` does not have.
    """
    if "val" in source.splits:
        raise ConfigError(
            parameter="val_source",
            value=other.where,
            problem=f"{source.where} has an evaluation split already",
            remedy="Leave the option out",
        )
    if len(other.splits) > 1:
        raise ConfigError(
            parameter="val_source",
            value=other.where,
            problem="it has a training split too, expected a source with one split",
            remedy="Name the folder or the files of its evaluation split",
        )
    (split,) = other.splits.values()
    numbers = [str(label) for label in range(len(other.class_names))]
    numbered = other.class_names == numbers and len(numbers) <= len(source.class_names)
    label_by_name = {name: label for label, name in enumerate(source.class_names)}
    if not numbered and (unknown := [n for n in other.class_names if n not in label_by_name]):
        raise DatasetError(
            f"{other.where} has the class {unknown[0]}, expected one of the "
            f"{len(source.class_names):,} classes of {source.where}"
        )
    if not numbered:
        here = np.array([label_by_name[name] for name in other.class_names], dtype=np.int64)
        split = RelabelledSplit(split, here[split.labels])
    content = f"{source.identity['content']} {other.identity['content']}"
    return replace(
        source,
        splits=source.splits | {"val": split},
        identity=source.identity
        | {"content": hashlib.sha256(content.encode()).hexdigest(), "val_source": other.where},
        ignored_files=source.ignored_files + other.ignored_files,
    )


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
    for label in range(len(source.class_names)):
        members = np.flatnonzero(train.labels == label)
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
