"""A subset: the sample ids to keep, and their provenance."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdcache.errors import CacheCorruptError, CacheMismatchError
from kdcache.files import read_npz, replace_atomically
from kdcache.selection.report import SelectReport


@dataclass(frozen=True, eq=False)
class Subset:
    """Sample ids, sorted and unique, and how they were chosen."""

    sample_ids: npt.NDArray[np.int64]
    provenance: dict[str, Any] = field(default_factory=dict)
    report: SelectReport | None = None
    """The figures of the call that selected it; None if it was read from a file."""

    def __post_init__(self) -> None:
        """Check the ids."""
        ids = self.sample_ids
        if ids.dtype != np.int64 or ids.ndim != 1 or not len(ids):
            raise ValueError(
                f"sample_ids are {ids.dtype} of shape {ids.shape}, expected int64 of shape (n,) "
                "with n >= 1"
            )
        if ids[0] < 0 or (np.diff(ids) <= 0).any():
            raise ValueError("sample_ids are not sorted and unique from 0, expected np.unique(ids)")

    def __eq__(self, other: object) -> bool:
        """Return True if sample ids and provenance are equal; `report` does not count."""
        if not isinstance(other, Subset):
            return NotImplemented
        same_ids = np.array_equal(self.sample_ids, other.sample_ids)
        return same_ids and self.provenance == other.provenance

    __hash__ = None  # type: ignore[assignment]  # the ids are an array

    def __len__(self) -> int:
        """Return the number of samples to keep."""
        return len(self.sample_ids)

    def save(self, path: Path | str) -> None:
        """Write an npz file with `sample_ids` and `provenance` (a JSON string), atomically."""
        with replace_atomically(Path(path)) as partial, partial.open("wb") as file:
            np.savez(file, sample_ids=self.sample_ids, provenance=json.dumps(self.provenance))

    @classmethod
    def load_of(cls, path: Path | str, data_fingerprint: str) -> Subset:
        """Read a subset file and check its data; a file that records no fingerprint passes.

        Raises:
            FileNotFoundError: if the file does not exist.
            CacheCorruptError: if it is not a subset file.
            CacheMismatchError: if it was selected from other data.
        """
        subset = cls.load(path)
        found = subset.provenance.get("data_fingerprint", data_fingerprint)
        if found != data_fingerprint:
            raise CacheMismatchError(
                f"{path} was selected from other data: data_fingerprint is {found[:12]}, expected "
                f"{data_fingerprint[:12]}. Run kdcache select again"
            )
        return subset

    @classmethod
    def load(cls, path: Path | str) -> Subset:
        """Read a subset file. Pickled content is refused, never loaded.

        Raises:
            FileNotFoundError: if the file does not exist.
            CacheCorruptError: if it is not a subset file.
        """
        try:
            arrays = read_npz(Path(path).read_bytes())
            return cls(arrays["sample_ids"], dict(json.loads(str(arrays["provenance"]))))
        except (CacheCorruptError, KeyError, TypeError, ValueError) as error:
            raise CacheCorruptError(
                f"{path} is not a subset file ({error}), expected one that kdcache select made"
            ) from error
