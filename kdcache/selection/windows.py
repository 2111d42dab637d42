"""Methods that keep a contiguous window of the samples sorted by difficulty."""

from __future__ import annotations

import math

from kdcache.selection.context import Group, SelectionContext
from kdcache.selection.ranking import Entries


def easy(group: Group, quota: int, context: SelectionContext) -> Entries:  # noqa: ARG001
    """Keep the samples with the lowest scores."""
    return group.entries[:quota]


def hard(group: Group, quota: int, context: SelectionContext) -> Entries:  # noqa: ARG001
    """Keep the samples with the highest scores."""
    return group.entries[len(group) - quota :]


def medium(group: Group, quota: int, context: SelectionContext) -> Entries:  # noqa: ARG001
    """Keep the window around the median that MDSLR keeps.

    References:
        Chen et al. 2025, "Medium-Difficulty Samples Constitute Smoothed Decision Boundary for
        Knowledge Distillation on Pruned Datasets". As in their published code, quota // 2 samples
        are above the middle and the others below it.
    """
    if quota == len(group):
        return group.entries
    middle = len(group) // 2
    return group.entries[middle - (quota - quota // 2) : middle + quota // 2]


def window(group: Group, quota: int, context: SelectionContext) -> Entries:
    """Keep the samples from the quantile `--start` of the group upwards.

    If fewer than `quota` samples are above it, the window ends with the hardest sample instead.
    """
    start = context.options.start
    assert start is not None  # noqa: S101  (the options require it for this method)
    first = min(math.floor(start * len(group) + 0.5), len(group) - quota)
    return group.entries[first : first + quota]
