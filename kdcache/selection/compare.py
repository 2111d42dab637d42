"""What two subsets of the same data have in common."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kdcache.selection.report import SubsetComparison
from kdcache.selection.subset import Subset


class Comparison(NamedTuple):
    """Two subsets, side by side."""

    overlap: int
    """Samples in both."""
    by_chance: float
    """Samples that would be in both, were each drawn at random with its own class numbers."""
    kept: npt.NDArray[np.int64]
    """(C,) samples of each class in the first."""
    other_kept: npt.NDArray[np.int64]
    """(C,) in the second."""
    class_sizes: npt.NDArray[np.int64]
    """(C,) in the data."""

    def report(self) -> SubsetComparison:
        """Return what is reported of it; shares are of the smaller subset."""
        smaller = min(int(self.kept.sum()), int(self.other_kept.sum()))
        return SubsetComparison(
            other_kept=int(self.other_kept.sum()),
            overlap=self.overlap,
            overlap_share=round(self.overlap / smaller, 6),
            by_chance_share=round(self.by_chance / smaller, 6),
            kept_per_class=tuple(self.kept.tolist()),
            other_kept_per_class=tuple(self.other_kept.tolist()),
        )


def compare(
    subset: Subset, other: Subset, labels: npt.NDArray[np.int64], num_classes: int
) -> Comparison:
    """Count what two subsets share, and what each keeps of every class.

    Args:
        subset: the first.
        other: the second, of the same data.
        labels: (N,) in [0, C).
        num_classes: C.
    """
    sizes = np.bincount(labels, minlength=num_classes)
    kept, other_kept = (
        np.bincount(labels[ids], minlength=num_classes)
        for ids in (subset.sample_ids, other.sample_ids)
    )
    shared = np.intersect1d(subset.sample_ids, other.sample_ids, assume_unique=True)
    by_chance = float((kept * other_kept / np.maximum(sizes, 1)).sum())
    return Comparison(len(shared), by_chance, kept, other_kept, sizes)
