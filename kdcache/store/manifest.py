"""What a store was made from: written once, first, and never changed.

Views can be added later, so their number is not here; each view's own marker says that it is whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from kdcache.data.policy import CLEAN_SHARE, Policy
from kdcache.data.views import Views
from kdcache.errors import CacheCorruptError, CacheMismatchError
from kdcache.files import differences
from kdcache.options import EnsembleMode, Precision

FORMAT_VERSION = 3

READABLE_VERSIONS = (1, 2, 3)
"""Before 3 there was one teacher, which saw the student's images and the usual clean view, and
`mean` and `std` were its alone. 1 lacks `rows`, `rows_digest` and its own digest too; its views
from 1 cover all N samples."""

_NEW_IN_3 = ("teachers", "ensemble", "teacher_size", "clean_share")
_NEW_IN_2 = ("rows", "rows_digest")


@dataclass(frozen=True)
class StoreManifest:
    """Identity and build conditions of a logit store."""

    format_version: int
    data_fingerprint: str
    """Of the training beton."""
    samples: int
    """N, of the whole training set."""
    classes: int
    class_names: list[str]
    rows: int
    """M, of each view from 1."""
    rows_digest: str
    """sha256 of their sample ids."""
    teacher: str
    """Its name, of an ensemble `A+B`."""
    teacher_arch: str
    teacher_digest: str
    teachers: list[str]
    """What `--teacher` said of each, of a file its name alone."""
    ensemble: EnsembleMode | None
    """What the mean of several teachers was taken of; None for one."""
    policy: str
    view_seed: int
    image_size: int
    """Height and width of the student's images."""
    teacher_size: int
    """Height and width of the teacher's, cut from the same boxes."""
    clean_share: float
    """Side of view 0's centre square above 64 px, as a share of the short side."""
    mean: list[list[float]]
    """(teachers, 3) of the normalisation of each teacher, in [0, 1]."""
    std: list[list[float]]
    """(teachers, 3) likewise."""
    codec: str
    """As it was expected for; `kdcache.store.format.codec_file` says what was decided."""
    precision: Precision
    """Of the teacher's body."""
    shard_rows: int
    """Rows of one shard, the unit that is written and committed whole."""
    batch_size: int
    """Images of each forward; a shard's last batch is padded to it."""
    device: str
    versions: dict[str, str]

    @property
    def views(self) -> Views:
        """Everything, besides the sample, that the pixels of a student's view depend on."""
        policy = Policy.parse(self.policy)
        return Views(policy, self.view_seed, self.image_size, self.clean_share)

    @property
    def teacher_views(self) -> Views:
        """The same boxes at the size that the teacher sees."""
        return self.views._replace(image_size=self.teacher_size)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON content."""
        return asdict(self)

    def digest(self) -> str:
        """Return the hex sha256 of its content."""
        return digest_content(self.to_json())

    @classmethod
    def from_json(cls, content: Mapping[str, Any], *, path: str) -> StoreManifest:
        """Return the manifest that was written as `content`, by this version or one before.

        Raises:
            CacheMismatchError: if a version of kdcache wrote it that this one cannot read.
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
                "clean_share": CLEAN_SHARE,
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
"""Fields that decide what the numbers of view 0 mean."""

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
"""Fields that decide what the numbers in a store mean."""

CONDITIONS = ("shard_rows", "batch_size", "device", "versions")
"""Fields that decide the last bits of the numbers; they must agree while rows are added."""


def digest_content(content: Mapping[str, Any]) -> str:
    """Return the hex sha256 of a manifest as JSON content, of any version."""
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
    """Compare two manifests.

    Raises:
        CacheMismatchError: names every field that differs, with both values.
    """
    expected = {field: getattr(wanted, field) for field in fields}
    if differ := differences(found.to_json(), expected):
        raise CacheMismatchError(f"{path} was built from something else: {differ}. {remedy}")
