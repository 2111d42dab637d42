"""Record the inputs of a store. The manifest is written first and never changed.

It does not hold the number of views, because views can be added later. A marker file in each view
marks the view as complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from kdcache.data.policy import CENTER_CROP_RATIO, Policy
from kdcache.data.views import Views
from kdcache.errors import CacheCorruptError, CacheMismatchError
from kdcache.identity import differences
from kdcache.options import EnsembleMode, Precision

FORMAT_VERSION = 3

READABLE_VERSIONS = (1, 2, 3)
"""Versions 1 and 2 have one teacher, whose images have the student's size and the default clean
view; `mean` and `std` are one row. Version 1 also lacks `rows`, `rows_digest` and the digest of the
manifest; its augmented views cover all N samples."""

_NEW_IN_3 = ("teachers", "ensemble", "teacher_size", "clean_share")
_NEW_IN_2 = ("rows", "rows_digest")


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
    clean_share: float
    """Center crop ratio of view 0 for images above 64 px, as a fraction of the short side."""
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
        return Views(policy, self.view_seed, self.image_size, self.clean_share)

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
        """Parse a manifest that this version or an earlier one wrote.

        Raises:
            CacheMismatchError: if its format version is not readable.
            CacheCorruptError: if fields are missing or unknown.
        """
        version = content.get("format_version")
        if version not in READABLE_VERSIONS:
            known = ", ".join(map(str, READABLE_VERSIONS))
            raise CacheMismatchError(
                f"format_version of {path} is {version!r}, expected one of {known}. Use the "
                "version of kdcache that wrote it, or build it again with --overwrite"
            )
        given = dict(content)
        names = {field.name for field in fields(cls)}
        if version < 3:  # noqa: PLR2004  (see READABLE_VERSIONS)
            names -= set(_NEW_IN_3)
        if version == 1:
            names -= set(_NEW_IN_2)
        if names != set(given):
            odd = ", ".join(sorted(names ^ set(given)))
            raise CacheCorruptError(
                f"the manifest of {path} has missing or unknown fields: {odd}. Build the store "
                "again with kdcache build-logits --overwrite"
            )
        if version == 1:
            every_sample = np.arange(given["samples"], dtype=np.int64)
            given |= {"rows": len(every_sample), "rows_digest": digest_sample_ids(every_sample)}
        if version < 3:  # noqa: PLR2004
            arch = given["teacher_arch"]
            given |= {
                "format_version": FORMAT_VERSION,
                "teachers": [arch if ":" in arch else given["teacher"]],
                "ensemble": None,
                "teacher_size": given["image_size"],
                "clean_share": CENTER_CROP_RATIO,
                "mean": [given["mean"]],
                "std": [given["std"]],
            }
        return cls(**given)


CLEAN_IDENTITY = (
    "data_fingerprint",
    "samples",
    "classes",
    "teacher_digest",
    "teacher_size",
    "clean_share",
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
    """Return the hex sha256 of the JSON content of a manifest of any version."""
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
