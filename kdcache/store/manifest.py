"""Record the inputs of a store. The manifest is written first and never changed.

It does not hold the number of views, because views can be added later. A marker file in each view
marks the view as complete.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from kdcache.data.policy import DecodeMode, Filter, PixelDefinition, Policy
from kdcache.data.views import Views
from kdcache.errors import CacheCorruptError, CacheMismatchError
from kdcache.identity import differences
from kdcache.options import EnsembleMode, Precision

FORMAT_VERSION = 4
"""Version of the store. Version 4: pixels by view key; each shard carries its identity."""


@dataclass(frozen=True)
class StoreManifest:
    """Identity and build conditions of a logit store."""

    format_version: int
    data_fingerprint: str
    """Fingerprint of the training beton."""
    samples: int
    """N, the size of the whole training set."""
    classes: int
    class_names: list[str]
    rows: int
    """M, the rows per augmented view."""
    rows_digest: str
    """Hex sha256 of the sample ids of these rows."""
    teacher: str
    """Name of the teacher; `A+B` for an ensemble."""
    teacher_arch: str
    teacher_digest: str
    teachers: list[str]
    """Value of `--teacher` per member; for a file, only its name."""
    ensemble: EnsembleMode | None
    """The quantity that is averaged over several teachers; None for one teacher."""
    policy: str
    view_seed: int
    image_size: int
    """Height and width of the student's images, in pixels."""
    teacher_size: int
    """Height and width of the teacher's images, in pixels; their boxes are the student's."""
    center_crop_ratio: float
    """Center crop ratio of view 0 for images above 64 px, as a fraction of the short side."""
    clean_filter: Filter
    """The filter that resizes view 0; the policy has that of the other views."""
    pixel_definition: PixelDefinition
    decode: DecodeMode
    mean: list[list[float]]
    """(teachers, 3) mean of the normalisation per teacher, in [0, 1]."""
    std: list[list[float]]
    """(teachers, 3) standard deviation of the normalisation per teacher, above 0."""
    codec: str
    """The requested codec; `kdcache.store.format.codec_file` holds the decision."""
    precision: Precision
    """Precision of the teacher's body."""
    shard_rows: int
    """Rows of a shard, the unit of a commit."""
    batch_size: int
    """Images per forward; the last batch of a shard is padded to it."""
    device: str
    versions: dict[str, str]

    @property
    def views(self) -> Views:
        """The view parameters that define the student's pixels, together with the sample."""
        policy = Policy.parse(self.policy)
        return Views(
            policy,
            self.view_seed,
            self.image_size,
            self.center_crop_ratio,
            self.clean_filter,
            self.pixel_definition,
            self.decode,
        )

    @property
    def teacher_views(self) -> Views:
        """The same views at the teacher's image size."""
        return self.views._replace(image_size=self.teacher_size)

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as JSON content."""
        return asdict(self)

    def digest(self) -> str:
        """Return the hex sha256 of the manifest."""
        return digest_content(self.to_json())

    @classmethod
    def from_json(cls, content: Mapping[str, Any], *, path: str) -> StoreManifest:
        """Parse a manifest.

        Raises:
            CacheMismatchError: if another version of kdcache wrote it.
            CacheCorruptError: if fields are missing or unknown.
        """
        version = content.get("format_version")
        if version != FORMAT_VERSION:
            raise CacheMismatchError(
                f"format_version of {path} is {version!r}, expected {FORMAT_VERSION}. "
                f"{build_again(path, content)}"
            )
        names = {field.name for field in fields(cls)}
        if odd := names ^ set(content):
            raise CacheCorruptError(
                f"the manifest of {path} has missing or unknown fields: {', '.join(sorted(odd))}. "
                f"{build_again(path, content)}"
            )
        return cls(**content)

    def id_of(self, array: str) -> str:
        """Return the identity of an array's values, which its shards carry: 32 hex digits.

        It is a digest of the fields that define the values, not a random number. So a store that
        is built again, in parts, or after a kill has equal bytes. What view 0 fills does not depend
        on the other views, and a store for a subset may link the files of another store.
        """
        of_clean_view = array.startswith(("scores/", "stats/", "views/0/")) or array == "features"
        names = CLEAN_IDENTITY if of_clean_view else IDENTITY
        content: dict[str, Any] = {name: getattr(self, name) for name in (*names, "shard_rows")}
        if of_clean_view:
            content |= {"format_version": self.format_version, "clean": self.clean_codec}
        return digest_content(content)[:32]

    @property
    def clean_codec(self) -> str:
        """Name of the codec of view 0, which keeps every logit."""
        return "float32" if self.codec == "float32" else "dense"


CLEAN_IDENTITY = (
    "data_fingerprint",
    "samples",
    "classes",
    "teacher_digest",
    "teacher_size",
    "center_crop_ratio",
    "clean_filter",
    "pixel_definition",
    "decode",
    "mean",
    "std",
    "precision",
)
"""Fields that define the values of view 0."""

IDENTITY = (
    "format_version",
    *CLEAN_IDENTITY,
    "rows",
    "rows_digest",
    "policy",
    "view_seed",
    "image_size",
    "codec",
)
"""Fields that define the values of a store."""

CONDITIONS = ("shard_rows", "batch_size", "device", "versions")
"""Fields that change only the last bits of the values. They must agree when rows are added."""


def digest_content(content: Mapping[str, Any]) -> str:
    """Return the hex sha256 of JSON content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def digest_sample_ids(sample_ids: npt.NDArray[np.int64]) -> str:
    """Return the hex sha256 of sample ids."""
    return hashlib.sha256(sample_ids.astype("<i8").tobytes()).hexdigest()


def build_conditions(manifest: StoreManifest) -> dict[str, Any]:
    """Return the build conditions of a manifest."""
    return {name: getattr(manifest, name) for name in CONDITIONS}


def require_equal(
    found: StoreManifest, wanted: StoreManifest, fields: Sequence[str], *, path: str, remedy: str
) -> None:
    """Check that fields of two manifests are equal.

    Raises:
        CacheMismatchError: if they are not; names each differing field with both values.
    """
    expected = {field: getattr(wanted, field) for field in fields}
    if differ := differences(found.to_json(), expected):
        raise CacheMismatchError(f"{path} was built from other inputs: {differ}. {remedy}")


def build_again(path: str, content: Mapping[str, Any], *, num_views: int | None = None) -> str:
    """Return the remedy that builds a store again, with the command that made it.

    Args:
        path: path or URL of the store.
        content: the manifest, of any version; fields may be missing.
        num_views: number of augmented views; None if it is not known.
    """
    arch = str(content.get("teacher_arch"))
    name = arch if ":" in arch else content.get("teacher", "NAME")
    teachers = content.get("teachers") or [name]
    options: dict[str, Any] = {
        "ensemble": content.get("ensemble"),
        "views": num_views,
        "codec": content.get("codec"),
        "policy": content.get("policy"),
        "view_seed": content.get("view_seed"),
        "image_size": content.get("image_size"),
        "teacher_size": content.get("teacher_size"),
        "pixel_definition": content.get("pixel_definition"),
        "decode": content.get("decode"),
        "precision": content.get("precision"),
        "batch_size": content.get("batch_size"),
    }
    place = PurePath(path)
    if content.get("rows", content.get("samples")) != content.get("samples"):
        # A store for a subset is named after its teacher and the subset.
        options["subset"] = place.stem.removeprefix(f"{content.get('teacher')}-")
    if place.parent.name == "stores" and "://" not in path:
        options["workspace"] = str(place.parent.parent)
    options["store"] = path
    words = ["kdcache build-logits", *(f"--teacher {shlex.quote(str(name))}" for name in teachers)]
    words += [
        f"--{name.replace('_', '-')} {shlex.quote(str(value))}"
        for name, value in options.items()
        if value is not None
    ]
    return f"Run: {' '.join([*words, '--overwrite'])}"
