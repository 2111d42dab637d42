"""How many samples each class keeps, computed exactly in integers."""

from __future__ import annotations

import math
from collections.abc import Sequence


def kept_total(num_samples: int, keep: float) -> int:
    """Return the number of samples to keep: floor(keep N + 0.5), at least 1."""
    return max(1, math.floor(keep * num_samples + 0.5))


def apportion(
    total: int, weights: Sequence[int], minimums: Sequence[int], maximums: Sequence[int]
) -> list[int]:
    """Divide a total in proportion to weights, within bounds.

    Every share is clamp(f w, minimum, maximum), with the one factor f for which the shares sum to
    the total. Shares are rounded by largest remainder; ties go to the smaller index.

    Args:
        total: at least the sum of `minimums` and at most that of `maximums`.
        weights: at least 0; a share with weight 0 gets its minimum.
        minimums: lower bound of each share.
        maximums: upper bound of each share, at least its minimum.

    Returns:
        One integer per weight. They sum to `total`, or to less if only shares with weight 0 could
        take the rest.
    """
    shares = list(minimums)
    free = [i for i, weight in enumerate(weights) if weight > 0]
    while free:
        left = total - (sum(shares) - sum(shares[i] for i in free))
        weight_sum = sum(weights[i] for i in free)

        # A free share is left * w / weight_sum; integers are compared without dividing.
        below = [i for i in free if left * weights[i] < minimums[i] * weight_sum]
        above = [i for i in free if left * weights[i] > maximums[i] * weight_sum]
        if not below and not above:
            return _largest_remainder(shares, free, weights, left, weight_sum)
        # Clamping changes what is left for the others. If clamping all would exceed the total, the
        # other shares can only shrink, so those at their minimum are final. If it would fall short
        # of the total, they can only grow, so those at their maximum are final.
        excess = sum(minimums[i] * weight_sum - left * weights[i] for i in below)
        excess -= sum(left * weights[i] - maximums[i] * weight_sum for i in above)
        settled = set(below if excess >= 0 else ()) | set(above if excess <= 0 else ())
        for i in settled:
            shares[i] = minimums[i] if i in below else maximums[i]
        free = [i for i in free if i not in settled]
    return shares


def _largest_remainder(
    shares: list[int], free: list[int], weights: Sequence[int], left: int, weight_sum: int
) -> list[int]:
    remainders = {}
    for i in free:
        shares[i], remainders[i] = divmod(left * weights[i], weight_sum)
    rest = left - sum(shares[i] for i in free)
    for i in sorted(free, key=lambda i: (-remainders[i], i))[:rest]:
        shares[i] += 1
    return shares


def class_quotas(
    class_sizes: Sequence[int],
    total: int,
    balance: str,
    *,
    min_per_class: int = 0,
    densities: Sequence[tuple[int, int]] | None = None,
) -> list[int]:
    """Return how many samples each class keeps.

    Args:
        class_sizes: samples of each class.
        total: number of samples to keep, at most the sum of the sizes.
        balance: `proportional` (in proportion to the class sizes) or `class` (equal numbers; if a
            class is too small, the others keep more).
        min_per_class: each class keeps at least this many samples, or all if it has fewer.
        densities: relative density of each class as (numerator, denominator). It multiplies the
            weight that the balance gives the class. None: equal densities. If all other classes
            are kept whole, those of density 0 share the rest in proportion to their sizes.

    Returns:
        One integer per class; they sum to `total`.
    """
    weights = [size if balance == "proportional" else min(size, 1) for size in class_sizes]
    if densities is not None:
        common = math.lcm(*(denominator for _, denominator in densities))
        weights = [
            weight * numerator * (common // denominator)
            for weight, (numerator, denominator) in zip(weights, densities, strict=True)
        ]
    minimums = [min(size, min_per_class) for size in class_sizes]
    quotas = apportion(total, weights, minimums, class_sizes)
    if sum(quotas) < total:
        quotas = apportion(total, class_sizes, quotas, class_sizes)
    return quotas
