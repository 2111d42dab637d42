"""The manifest of a beton, `SPLIT.json`, which protects all files of the beton."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kdcache.errors import CacheCorruptError, DatasetError
from kdcache.files import parse_json
from kdcache.seals import JSON_KEY, require_whole, seal_state, write_sealed_json

FORMAT_VERSION = 2
"""Version of the manifest; the file itself is FFCV's version 2. Version 2 of the manifest: three
digests and a name per image, views by view key, a seal."""

_PACK_OPTIONS = (
    *("val_source", "label_key", "classes", "compact_labels", "write_mode", "max_resolution"),
    *("max_image_pixels", "val_fraction", "on_bad_image", "seed"),
)
"""Options of `kdcache pack` that `made_from` records."""


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
    """Hex sha256 over class names, sample ids, labels and the digests of the decoded pixels."""
    beton_bytes: int
    tables_digest: str
    """Hex sha256 over the header and the tables of the beton; all other bytes are images or 0."""
    digests_digest: str
    """Hex sha256 of `SPLIT.digests.npy`."""
    names_digest: str
    """Hex sha256 of `SPLIT.names.parquet`."""
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
            DatasetError: if it is missing or damaged, or an earlier version of kdcache wrote it.
        """
        path = manifest_path(beton)
        if not path.exists():
            raise DatasetError(
                f"{path} is missing, expected the manifest of {beton.name}. {pack_again(beton)}"
            )
        raw = path.read_bytes()
        state = seal_state(raw)
        try:
            content = parse_json(raw, path)
        except CacheCorruptError as error:
            raise DatasetError(f"{error.text}. {pack_again(beton)}") from error
        try:
            # In a changed file the version may be what was changed.
            if state != "changed" and content.get("format_version") != FORMAT_VERSION:
                raise DatasetError(
                    f"format_version of {path} is {content.get('format_version')}, expected "
                    f"{FORMAT_VERSION}. {pack_again(beton, content)}"
                )
            require_whole(state, path, pack_again(beton, content))
        except CacheCorruptError as error:
            raise DatasetError(error.text) from error
        del content[JSON_KEY]
        if odd := {field.name for field in fields(cls)} ^ content.keys():
            raise DatasetError(
                f"{path} has missing or unknown fields: {', '.join(sorted(odd))}. "
                f"{pack_again(beton, content)}"
            )
        return cls(**content)

    def save(self, beton: Path) -> None:
        """Write the manifest of a beton atomically, with its seal."""
        write_sealed_json(manifest_path(beton), self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return the content of the JSON file."""
        return asdict(self)


def pack_again(beton: Path, manifest: BetonManifest | Mapping[str, Any] | None = None) -> str:
    """Return the remedy that packs a beton again, with the command that made it.

    Args:
        beton: path of the beton. If it lies beside a subset file, it was packed from that subset.
        manifest: the beton's manifest, or its JSON content of any version; None if it cannot be
            read.
    """
    made_from: dict[str, Any] | None = None
    if isinstance(manifest, BetonManifest):
        made_from = manifest.made_from
    elif manifest is not None:
        found = manifest.get("made_from")
        made_from = found if isinstance(found, dict) else None
    subset = beton.with_suffix(".npz")
    if subset.exists() or "parent" in (made_from or {}):
        in_workspace = beton.parent.name == "subsets"
        workspace = f" --workspace {_quoted(beton.parent.parent)}" if in_workspace else ""
        return f"Run: kdcache pack --subset {_quoted(subset)} --overwrite{workspace}"
    workspace = f" --workspace {_quoted(beton.parent)}"
    if made_from is None:
        return f"Run: kdcache pack SOURCE --overwrite{workspace}"
    options = "".join(
        f" --{name.replace('_', '-')}"
        + ("" if made_from[name] is True else f" {_quoted(made_from[name])}")
        for name in _PACK_OPTIONS
        if made_from.get(name) is not None
    )
    source = _quoted(made_from.get("path", made_from.get("kind", "SOURCE")))
    return f"Run: kdcache pack {source}{options} --overwrite{workspace}"


def _quoted(value: object) -> str:
    return shlex.quote(str(value))


def manifest_path(beton: Path) -> Path:
    """Return the path of a beton's manifest."""
    return beton.with_suffix(".json")


def names_path(beton: Path) -> Path:
    """Return the path of the names of a beton's images; see `kdcache.data.names`."""
    return beton.with_suffix(".names.parquet")


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
        digests: (N, 16) of the decoded pixels, so that another packing of equal pixels has the
            same fingerprint.
    """
    content = hashlib.sha256(json.dumps(class_names).encode())
    for array in (sample_ids.astype("<i8"), labels.astype("<i8"), digests):
        content.update(np.ascontiguousarray(array).tobytes())
    return content.hexdigest()
