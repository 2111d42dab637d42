"""The result of `kdcache select`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdcache.results import JSON, Result


@dataclass(frozen=True, kw_only=True)
class SubsetComparison(Result):
    """The overlap of two subsets. Fractions are of the smaller subset."""

    other_kept: int
    """Samples of the other subset."""
    overlap: int
    """Samples in both subsets."""
    overlap_share: float
    by_chance_share: float
    """Expected overlap of two random subsets with the same numbers per class."""
    kept_per_class: tuple[int, ...]
    """(C,) samples of each class in the new subset."""
    other_kept_per_class: tuple[int, ...]
    """(C,) samples of each class in the other subset."""


@dataclass(frozen=True, kw_only=True)
class SelectReport(Result):
    """The figures of one call of `select`."""

    method: str
    keep: float
    """Fraction of samples to keep, in (0, 1]."""
    kept: int
    of: int
    """Samples to choose from."""
    path: Path
    """The subset file."""
    compare: SubsetComparison | None = None
    """Overlap with another subset, if one was named."""

    def to_json(self) -> dict[str, JSON]:
        """Return the JSON object; `compare` appears if a subset was named."""
        content = super().to_json()
        if self.compare is None:
            del content["compare"]
        return content
