"""Coverage-centric selection: drop the hardest samples, then keep samples of every difficulty.

References:
    Zheng, Liu, Lai, Prakash 2023, "Coverage-centric Coreset Selection for High Pruning Rates"
    (CCS). In their code, the bins end at 1.0001 times the largest score, which excludes that score
    if it is negative. Here the last bin includes it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from kdcache.compiled import compiled
from kdcache.selection.context import Group, SelectionContext
from kdcache.selection.ranking import ID_MASK, Entries, redraw

NUM_BINS = 50
"""Number of bins of equal width in score, as in CCS."""


def stratified(group: Group, quota: int, context: SelectionContext) -> Entries:
    """Keep equal numbers from bins of difficulty, as far as they last, at random within each bin.

    `--cut`, in [0, 1], is the fraction of the hardest samples that is dropped first, as probably
    mislabelled, but never so many that fewer than the quota remain. Changes the group in place.
    """
    cut = context.options.cut or 0.0
    entries = group.entries
    survivors = entries[: max(len(group) - math.floor(cut * len(group) + 0.5), quota)]
    if len(survivors) == quota:
        return survivors
    bounds = _bin_bounds(survivors, context.order, NUM_BINS)
    kept = 0
    for start, size, budget in zip(
        bounds[:-1].tolist(),
        np.diff(bounds).tolist(),
        bin_budgets(np.diff(bounds).tolist(), quota),
        strict=True,
    ):
        bin_entries = survivors[start : start + size]
        if 0 < budget < size:
            redraw(bin_entries, context.draws)
            bin_entries.partition(budget - 1)
        survivors[kept : kept + budget] = bin_entries[:budget]  # overwrites only bins that are done
        kept += budget
    return survivors[:kept]


def bin_budgets(sizes: list[int], total: int) -> list[int]:
    """Divide a total among bins as CCS does.

    From the smallest bin to the largest, each gets an equal share of what is left, or all its
    samples if it has fewer.

    Args:
        sizes: number of samples of each bin.
        total: at most the sum of the sizes.

    Returns:
        One integer per bin; they sum to `total`.
    """
    budgets = [0] * len(sizes)
    rest = total
    by_size = sorted(range(len(sizes)), key=lambda i: (sizes[i], i))
    for bins_left, i in zip(range(len(sizes), 0, -1), by_size, strict=True):
        budgets[i] = min(sizes[i], rest // bins_left)
        rest -= budgets[i]
    return budgets


@compiled()
def _bin_bounds(
    entries: Entries, scores_N: npt.NDArray[Any], num_bins: int
) -> npt.NDArray[np.int64]:
    """Return the offset of each bin in a sorted group, and the end, (num_bins + 1,)."""
    count = len(entries)
    low = np.float64(scores_N[entries[0] & ID_MASK])
    width = np.float64(scores_N[entries[count - 1] & ID_MASK]) - low
    bounds = np.zeros(num_bins + 1, dtype=np.int64)
    bounds[num_bins] = count
    for number in range(1, num_bins):
        # Binary search for the first entry of this bin or a later one. It works because rounding
        # preserves the order of the scores.
        first, end = bounds[number - 1], np.int64(count)
        while first < end:
            middle = (first + end) // 2
            above = np.float64(scores_N[entries[middle] & ID_MASK]) - low
            if width > 0 and above / width * num_bins >= number:
                end = middle
            else:
                first = middle + 1
        bounds[number] = first
    return bounds
