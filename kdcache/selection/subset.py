"""A subset: the sample ids to keep, and their provenance."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdcache.errors import CacheCorruptError, CacheMismatchError, ConfigError, MissingFileError
from kdcache.files import read_npz
from kdcache.seals import require_whole, seal_state, write_sealed_npz
from kdcache.selection.provenance import Provenance
from kdcache.selection.report import SelectReport


@dataclass(frozen=True, eq=False)
class Subset:
    """Sample ids, sorted and unique, and how they were chosen."""

    sample_ids: npt.NDArray[np.int64]
    provenance: Provenance = field(default_factory=Provenance)
    report: SelectReport | None = None
    """The figures of the call that selected it; None if it was read from a file."""

    def __post_init__(self) -> None:
        """Check the ids."""
        ids = self.sample_ids
        if not isinstance(ids, np.ndarray):
            raise ConfigError(
                f"sample_ids are {type(ids).__name__}, expected an array: np.unique(ids)",
                parameter="sample_ids",
                value=ids,
            )
        if ids.dtype != np.int64 or ids.ndim != 1 or not len(ids):
            raise ConfigError(
                f"sample_ids are {ids.dtype} of shape {ids.shape}, expected int64 of shape (n,) "
                "with n >= 1",
                parameter="sample_ids",
                value=ids,
            )
        if ids[0] < 0 or (np.diff(ids) <= 0).any():
            raise ConfigError(
                "sample_ids are not sorted and unique from 0, expected np.unique(ids)",
                parameter="sample_ids",
                value=ids,
            )

    def __eq__(self, other: object) -> bool:
        """Return True if sample ids and provenance are equal; `report` does not count."""
        if not isinstance(other, Subset):
            return NotImplemented
        same_ids = np.array_equal(self.sample_ids, other.sample_ids)
        return same_ids and self.provenance == other.provenance

    def __repr__(self) -> str:
        """Return the number of samples and how they were chosen."""
        return f"Subset({len(self):,} samples, {self.provenance})"

    __hash__ = None  # type: ignore[assignment]  # the ids are an array

    def __len__(self) -> int:
        """Return the number of samples to keep."""
        return len(self.sample_ids)

    def save(self, path: Path | str) -> None:
        """Write a sealed npz file, atomically: `sample_ids`, and `provenance` as a JSON string."""
        provenance = json.dumps(self.provenance, default=_as_json)
        write_sealed_npz(Path(path), {"sample_ids": self.sample_ids, "provenance": provenance})

    @classmethod
    def load_of(cls, path: Path | str, data_fingerprint: str) -> Subset:
        """Read a subset file and check its data; a file that records no fingerprint passes.

        Raises:
            MissingFileError: if the file does not exist.
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
            MissingFileError: if the file does not exist.
            CacheCorruptError: if it is not a subset file.
        """
        path = Path(path)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise MissingFileError(
                f"{path} does not exist, expected a subset file. Run: kdcache select"
            ) from None
        try:
            arrays = read_npz(content)
            sample_ids, provenance = arrays["sample_ids"], _provenance(arrays)
        except (CacheCorruptError, KeyError, TypeError, ValueError) as error:
            raise _not_a_subset(path, error) from error
        require_whole(seal_state(content), path, _select_again(path, provenance))
        try:
            return cls(sample_ids, provenance)
        except ValueError as error:
            raise _not_a_subset(path, error) from error


def _provenance(arrays: Mapping[str, npt.NDArray[np.generic]]) -> Provenance:
    content: Provenance = dict(json.loads(str(arrays["provenance"])))  # type: ignore[assignment]
    return content


def _not_a_subset(path: Path, error: Exception) -> CacheCorruptError:
    return CacheCorruptError(
        f"{path} is not a subset file ({error}), expected one that kdcache select made. "
        f"{_select_again(path, Provenance())}"
    )


_SELECT_OPTIONS = (
    *("method", "keep", "score", "scores", "balance", "seed", "min_per_class", "start", "cut"),
    *("peak", "concentration", "parity", "teacher"),
)
"""Options of `kdcache select` that `provenance` records."""


def _select_again(path: Path, provenance: Provenance) -> str:
    """Return the remedy that selects a subset again, with the command that made it."""
    given = dict(provenance)
    words = ["Run: kdcache select"]
    words += [
        f"--{name.replace('_', '-')} {shlex.quote(str(given[name]))}"
        for name in _SELECT_OPTIONS
        # Methods without draws refuse a seed.
        if given.get(name) is not None and not (name == "seed" and not given[name])
    ]
    words.append(f"--out {shlex.quote(str(path))} --overwrite")
    if path.parent.name == "subsets":
        words.append(f"--workspace {shlex.quote(str(path.parent.parent))}")
    return " ".join(words)


def _as_json(value: object) -> object:
    """Return a value of numpy as JSON content."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise ConfigError(
        f"provenance holds {value!r} of type {type(value).__name__}, expected JSON content",
        parameter="provenance",
        value=value,
    )
