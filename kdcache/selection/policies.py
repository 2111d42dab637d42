"""Which samples of a difficulty order to keep. Exact, deterministic, numpy alone.

One order serves every policy: by score, ascending (easiest first), ties to the smaller sample id.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from kdcache.errors import ConfigError
from kdcache.rng import generator

Ids = npt.NDArray[np.int64]


def random(order: Ids, count: int, seed: int, group: int) -> Ids:
    """Keep any, each with the same probability; a larger count keeps the smaller one's too."""
    return generator(seed, "select", group).permutation(np.sort(order))[:count]


def easy(order: Ids, count: int, seed: int, group: int) -> Ids:  # noqa: ARG001  (one signature)
    """Keep the lowest scores."""
    return order[:count]


def hard(order: Ids, count: int, seed: int, group: int) -> Ids:  # noqa: ARG001
    """Keep the highest scores."""
    return order[len(order) - count :]


def medium(order: Ids, count: int, seed: int, group: int) -> Ids:  # noqa: ARG001
    """Keep the window around the median that MDSLR keeps.

    References:
        Chen et al. 2025, "Medium-Difficulty Samples Constitute Smoothed Decision Boundary for
        Knowledge Distillation on Pruned Datasets": the window of their published code, floor half
        above the middle and the rest below it.
    """
    if count == len(order):
        return order
    middle = len(order) // 2
    return order[middle - (count - count // 2) : middle + count // 2]


POLICIES: dict[str, Callable[[Ids, int, int, int], Ids]] = {
    "random": random,
    "easy": easy,
    "hard": hard,
    "medium": medium,
}


def kept_total(num_samples: int, keep: float) -> int:
    """Return floor(keep N + 0.5), at least 1."""
    return max(1, math.floor(keep * num_samples + 0.5))


def class_quotas(class_sizes: npt.NDArray[np.int64], total: int, balance: str) -> Ids:
    """Divide a total among the classes; the quotas sum to it exactly.

    Args:
        class_sizes: (C,) samples of each class.
        total: at most their sum.
        balance: `proportional` (each class keeps its share) or `class` (equal numbers; what a
            class is too small for goes to the others).

    Returns:
        (C,) by largest remainder, ties to the smaller label.
    """
    sizes = class_sizes.astype(np.int64)
    if balance == "proportional":
        # In integers: total * size / N, whatever their size, without a rounding error.
        whole, remainder = np.divmod(total * sizes, sizes.sum())
        return whole + _largest(remainder, int(total - whole.sum()))
    quotas = np.zeros_like(sizes)
    while (left := int(total - quotas.sum())) > 0:
        open_classes = np.flatnonzero(quotas < sizes)
        share = left // len(open_classes)
        if share == 0:
            quotas[open_classes[:left]] += 1
        else:
            quotas[open_classes] += np.minimum(share, (sizes - quotas)[open_classes])
    return quotas


def _largest(remainders: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Return 1 at the `count` largest, ties to the smaller place, else 0."""
    ones = np.zeros_like(remainders)
    ones[np.argsort(-remainders, kind="stable")[:count]] = 1
    return ones


def select_ids(
    scores: npt.NDArray[Any],
    labels: npt.NDArray[np.int64],
    *,
    method: str,
    keep: float,
    balance: str,
    seed: int,
    num_classes: int,
) -> Ids:
    """Return the sample ids to keep.

    Args:
        scores: (N,) finite, higher = harder.
        labels: (N,) in [0, C).
        method: one of `POLICIES`.
        keep: share to keep, in (0, 1].
        balance: `proportional`, `class` or `none` (one global order).
        seed: of random draws.
        num_classes: C.

    Returns:
        (floor(keep N + 0.5),) int64, sorted.

    Raises:
        ConfigError: if the method is not known or a score is not finite; names the samples.
    """
    if method not in POLICIES:
        raise ConfigError(f"method is {method!r}, expected one of {', '.join(POLICIES)}")
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise ConfigError(
            f"the score of sample {bad[0]} is {scores[bad[0]]} ({len(bad):,} such samples), "
            "expected finite scores"
        )
    total = kept_total(len(scores), keep)
    policy = POLICIES[method]
    # Stable sorts: by score, then by class, so that within each class ties stay in id order.
    order = np.argsort(scores, kind="stable")
    if balance == "none":
        return np.sort(policy(order, total, seed, num_classes))
    order = order[np.argsort(labels[order], kind="stable")]
    sizes = np.bincount(labels, minlength=num_classes)
    quotas = class_quotas(sizes, total, balance)
    ends = np.cumsum(sizes)
    kept = [
        policy(order[end - size : end], int(quota), seed, label)
        for label, (size, end, quota) in enumerate(zip(sizes, ends, quotas, strict=True))
    ]
    return np.sort(np.concatenate(kept))
