"""The manifest of a beton, `SPLIT.json`, and the digests of its images beside it."""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kdcache.errors import CacheCorruptError, DatasetError, shell_line
from kdcache.files import read_json, replace_atomically

FORMAT_VERSION = 1
"""Version of the manifest; the beton format itself is FFCV's version 2."""

_PACK_OPTIONS = (
    *("val_source", "label_key", "classes", "compact_labels", "write_mode", "max_resolution"),
    *("max_image_pixels", "val_fraction", "on_bad_image", "seed"),
)
"""Options of `kdcache pack` that `made_from` records."""

_LATER_FIELDS = {"skipped"}
"""Fields that the first manifests of this version lack."""


@dataclass(frozen=True)
class BetonManifest:
    """The content and origin of a beton: `SPLIT.json` beside `SPLIT.beton`."""

    format_version: int
    split: str
    samples: int
    classes: int
    class_names: list[str]
    image_size: int
    """Default height and width of the images that a model sees, in pixels."""
    policy: str
    """Default view policy of the data set."""
    mean: list[float]
    """(3,) mean of the training split's pixels per channel, in [0, 1]."""
    std: list[float]
    """(3,) standard deviation of the training split's pixels per channel, in [0, 1]."""
    write_mode: Literal["raw", "jpg"]
    fingerprint: str
    """Hex sha256 over class names, sample ids, labels and the digest of every stored image."""
    beton_bytes: int
    made_from: dict[str, Any]
    """The source's identity and the pack options. A packed subset holds the full data's fingerprint
    as `parent`."""
    skipped: list[dict[str, Any]] = field(default_factory=list)
    """Images of the source that could not be decoded, as `position` (in its split), `name` and
    `reason`."""

    @property
    def is_subset(self) -> bool:
        """True if the beton holds a subset of another beton's samples."""
        return "parent" in self.made_from

    @property
    def data_fingerprint(self) -> str:
        """Fingerprint of the full data, which defines the sample ids; stores record it."""
        parent: str = self.made_from.get("parent", self.fingerprint)
        return parent

    @classmethod
    def load(cls, beton: Path) -> BetonManifest:
        """Read the manifest of a beton.

        Raises:
            DatasetError: if it is missing or damaged, or another version of kdcache wrote it.
        """
        path = manifest_path(beton)
        if not path.exists():
            raise DatasetError(
                f"{path} is missing, expected the manifest of {beton.name}. {pack_again(beton)}"
            )
        try:
            content = read_json(path)
        except CacheCorruptError as error:
            raise DatasetError(f"{shell_line(error)}. {pack_again(beton)}") from error
        if content.get("format_version") != FORMAT_VERSION:
            raise DatasetError(
                f"format_version of {path} is {content.get('format_version')}, expected "
                f"{FORMAT_VERSION}. {pack_again(beton)}"
            )
        known = {field.name for field in fields(cls)}
        needed = known - _LATER_FIELDS
        if odd := (needed - content.keys()) | (content.keys() - known):
            raise DatasetError(
                f"{path} has missing or unknown fields: {', '.join(sorted(odd))}. "
                f"{pack_again(beton)}"
            )
        return cls(**content)

    def to_json(self) -> dict[str, Any]:
        """Return the content of the JSON file."""
        return asdict(self)


def pack_again(beton: Path, manifest: BetonManifest | None = None) -> str:
    """Return the remedy that packs a beton again, with the command that made it.

    Args:
        beton: path of the beton. If it lies beside a subset file, it was packed from that subset.
        manifest: the beton's manifest; None if it cannot be read.
    """
    subset = beton.with_suffix(".npz")
    if subset.exists() or (manifest and manifest.is_subset):
        return f"Run: kdcache pack --subset {shlex.quote(str(subset))} --overwrite"
    if manifest is None:
        return "Run: kdcache pack SOURCE --overwrite"
    made_from = manifest.made_from
    options = "".join(
        f" --{name.replace('_', '-')}"
        + ("" if made_from[name] is True else f" {shlex.quote(str(made_from[name]))}")
        for name in _PACK_OPTIONS
        if made_from.get(name) is not None
    )
    source = shlex.quote(str(made_from.get("path", made_from.get("kind", "SOURCE"))))
    return f"Run: kdcache pack {source}{options} --overwrite"


def manifest_path(beton: Path) -> Path:
    """Return the path of a beton's manifest."""
    return beton.with_suffix(".json")


def digests_path(beton: Path) -> Path:
    """Return the path of a beton's (N, 16) uint8 array of image digests."""
    return beton.with_suffix(".digests.npy")


def load_digests(beton: Path) -> npt.NDArray[np.uint8]:
    """Return the digest of every stored image of a beton, (N, 16).

    Raises:
        DatasetError: if their file is missing or damaged.
    """
    path = digests_path(beton)
    try:
        digests: npt.NDArray[np.uint8] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(
            f"{path} cannot be read ({error}), expected the digests of {beton.name}'s images. "
            f"{pack_again(beton)}"
        ) from error
    return digests


def save_digests(beton: Path, digests: npt.NDArray[np.uint8]) -> None:
    """Write the digest of every stored image of a beton, (N, 16)."""
    with replace_atomically(digests_path(beton)) as partial, partial.open("wb") as file:
        np.save(file, digests)


def fingerprint(
    class_names: list[str],
    sample_ids: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    digests: npt.NDArray[np.uint8],
) -> str:
    """Return the hex sha256 that identifies the content of a beton, independent of its layout.

    Args:
        class_names: C names, in the order of the labels.
        sample_ids: (N,).
        labels: (N,) in [0, C).
        digests: (N, 16), one per stored image.
    """
    content = hashlib.sha256(json.dumps(class_names).encode())
    for array in (sample_ids.astype("<i8"), labels.astype("<i8"), digests):
        content.update(np.ascontiguousarray(array).tobytes())
    return content.hexdigest()
