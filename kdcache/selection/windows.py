"""Methods that keep one window of the order of difficulty: easy, hard, medium, any other."""

from __future__ import annotations

import math

from kdcache.selection.ranking import Entries


def easy(group: Entries, quota: int) -> Entries:
    """Keep the lowest scores."""
    return group[:quota]


def hard(group: Entries, quota: int) -> Entries:
    """Keep the highest scores."""
    return group[len(group) - quota :]


def medium(group: Entries, quota: int) -> Entries:
    """Keep the window around the median that MDSLR keeps.

    References:
        Chen et al. 2025, "Medium-Difficulty Samples Constitute Smoothed Decision Boundary for
        Knowledge Distillation on Pruned Datasets": the window of their published code, floor half
        above the middle and the rest below it.
    """
    if quota == len(group):
        return group
    middle = len(group) // 2
    return group[middle - (quota - quota // 2) : middle + quota // 2]


def window(group: Entries, quota: int, *, start: float) -> Entries:
    """Keep the samples from the quantile `start` of the group on.

    Args:
        group: sorted.
        quota: at most its size.
        start: in [0, 1]. Where fewer than `quota` samples lie above it (a class that keeps more
            than its share), the window ends with the hardest sample instead.
    """
    first = min(math.floor(start * len(group) + 0.5), len(group) - quota)
    return group[first : first + quota]
