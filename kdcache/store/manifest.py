"""What a store was made from: written once, first, and never changed.

Views can be added later, so their number is not here; each view's own marker says that it is whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kdcache.data.views import Policy, Views
from kdcache.errors import CacheMismatchError
from kdcache.files import differences
from kdcache.options import Precision

FORMAT_VERSION = 1


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
    teacher: str
    teacher_arch: str
    teacher_digest: str
    policy: str
    view_seed: int
    image_size: int
    mean: list[float]
    """(3,) of the normalisation, in [0, 1]."""
    std: list[float]
    codec: str
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
        """Everything, besides the sample, that a view's pixels depend on."""
        return Views(Policy.parse(self.policy), self.view_seed, self.image_size)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON content."""
        return asdict(self)


IDENTITY = (
    "format_version",
    "data_fingerprint",
    "samples",
    "classes",
    "teacher_digest",
    "policy",
    "view_seed",
    "image_size",
    "mean",
    "std",
    "codec",
    "precision",
)
"""Fields that decide what the numbers in a store mean."""

CONDITIONS = ("shard_rows", "batch_size", "device", "versions")
"""Fields that decide the last bits of the numbers; they must agree while rows are added."""


def require_equal(
    found: StoreManifest, wanted: StoreManifest, fields: Sequence[str], *, path: str, remedy: str
) -> None:
    """Compare two manifests.

    Raises:
        CacheMismatchError: names every field that differs, with both values.
    """
    asked = {field: getattr(wanted, field) for field in fields}
    if differ := differences(found.to_json(), asked):
        raise CacheMismatchError(f"{path} was built from something else: {differ}. {remedy}")
