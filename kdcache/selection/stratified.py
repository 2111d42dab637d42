"""Coverage-centric selection: drop the hardest, then keep samples of every difficulty.

References:
    Zheng, Liu, Lai, Prakash 2023, "Coverage-centric Coreset Selection for High Pruning Rates"
    (CCS). Their code takes bins up to 1.0001 times the largest score, so that it does not fall out
    of the last one (and it does where scores are negative); here the last bin holds it.
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
"""Of equal width in score, as in CCS."""


def stratified(group: Group, quota: int, context: SelectionContext) -> Entries:
    """Keep as equal a number of each difficulty as there is, at random within each.

    `--cut` is the share of the hardest that is dropped first as probably mislabelled, in [0, 1]; at
    most what the quota does not need. The group is changed in place.
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
        survivors[kept : kept + budget] = bin_entries[:budget]  # never beyond what was looked at
        kept += budget
    return survivors[:kept]


def bin_budgets(sizes: list[int], total: int) -> list[int]:
    """Divide a total among bins as CCS does.

    The smallest bin comes first; each gets its equal share of the rest, or all that it has.

    Args:
        sizes: samples of each bin.
        total: at most their sum.

    Returns:
        One number for each bin, of sum `total`.
    """
    budgets = [0] * len(sizes)
    rest = total
    by_size = sorted(range(len(sizes)), key=lambda place: (sizes[place], place))
    for bins_left, place in zip(range(len(sizes), 0, -1), by_size, strict=True):
        budgets[place] = min(sizes[place], rest // bins_left)
        rest -= budgets[place]
    return budgets


@compiled()
def _bin_bounds(
    entries: Entries, scores_N: npt.NDArray[Any], num_bins: int
) -> npt.NDArray[np.int64]:
    """Return the first place of each bin in a sorted group, and the end; (num_bins + 1,)."""
    count = len(entries)
    low = np.float64(scores_N[entries[0] & ID_MASK])
    width = np.float64(scores_N[entries[count - 1] & ID_MASK]) - low
    bounds = np.zeros(num_bins + 1, dtype=np.int64)
    bounds[num_bins] = count
    for number in range(1, num_bins):
        # The first entry whose bin is at least this one. Rounding never turns the order around.
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
