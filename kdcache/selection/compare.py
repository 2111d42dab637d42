"""Compare two subsets of the same data."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kdcache.selection.report import SubsetComparison
from kdcache.selection.subset import Subset


class Comparison(NamedTuple):
    """The comparison of two subsets."""

    overlap: int
    """Number of samples in both subsets."""
    by_chance: float
    """Expected overlap if each subset were drawn at random with the same numbers per class."""
    kept: npt.NDArray[np.int64]
    """(C,) samples of each class in the first subset."""
    other_kept: npt.NDArray[np.int64]
    """(C,) samples of each class in the second subset."""
    class_sizes: npt.NDArray[np.int64]
    """(C,) samples of each class in the data."""

    def report(self) -> SubsetComparison:
        """Return the report of the command; shares are fractions of the smaller subset."""
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
    """Count the samples that two subsets share, and those that each keeps per class.

    Args:
        subset: the first subset.
        other: the second subset, of the same data.
        labels: (N,) in [0, C).
        num_classes: number of classes C.
    """
    sizes = np.bincount(labels, minlength=num_classes)
    kept, other_kept = (
        np.bincount(labels[ids], minlength=num_classes)
        for ids in (subset.sample_ids, other.sample_ids)
    )
    shared = np.intersect1d(subset.sample_ids, other.sample_ids, assume_unique=True)
    by_chance = float((kept * other_kept / np.maximum(sizes, 1)).sum())
    return Comparison(len(shared), by_chance, kept, other_kept, sizes)
