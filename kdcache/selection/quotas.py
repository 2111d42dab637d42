"""How many samples each class keeps: exact, in whole numbers, whatever their size."""

from __future__ import annotations

import math
from collections.abc import Sequence


def kept_total(num_samples: int, keep: float) -> int:
    """Return floor(keep N + 0.5), at least 1."""
    return max(1, math.floor(keep * num_samples + 0.5))


def apportion(
    total: int, weights: Sequence[int], least: Sequence[int], most: Sequence[int]
) -> list[int]:
    """Divide a total in proportion to weights, within bounds.

    Every share is clamp(f w, least, most) for the one factor f that makes them sum to the total,
    rounded by largest remainder, ties to the smaller place.

    Args:
        total: at least the sum of `least`, at most the sum of `most`.
        weights: of any size, not negative; a weight of 0 gets its least.
        least: lower bound of each share.
        most: upper bound of each share, not below `least`.

    Returns:
        As many whole numbers of sum `total`; smaller where only weights of 0 could take the rest.
    """
    shares = list(least)
    free = [place for place, weight in enumerate(weights) if weight > 0]
    while free:
        left = total - (sum(shares) - sum(shares[place] for place in free))
        weight_sum = sum(weights[place] for place in free)

        # A share is left * w / weight_sum; it is compared without dividing.
        below = [i for i in free if left * weights[i] < least[i] * weight_sum]
        above = [i for i in free if left * weights[i] > most[i] * weight_sum]
        if not below and not above:
            return _largest_remainder(shares, free, weights, left, weight_sum)
        # What is set to its bound changes what the others get. Where too little was given out in
        # all, no share grows any more, so those above their bound are settled, and the reverse.
        excess = sum(least[i] * weight_sum - left * weights[i] for i in below)
        excess -= sum(left * weights[i] - most[i] * weight_sum for i in above)
        settled = set(below if excess >= 0 else ()) | set(above if excess <= 0 else ())
        for place in settled:
            shares[place] = least[place] if place in below else most[place]
        free = [place for place in free if place not in settled]
    return shares


def _largest_remainder(
    shares: list[int], free: list[int], weights: Sequence[int], left: int, weight_sum: int
) -> list[int]:
    remainders = {}
    for place in free:
        shares[place], remainders[place] = divmod(left * weights[place], weight_sum)
    rest = left - sum(shares[place] for place in free)
    for place in sorted(free, key=lambda place: (-remainders[place], place))[:rest]:
        shares[place] += 1
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
        total: at most their sum.
        balance: `proportional` (each class keeps its share) or `class` (equal numbers; what a
            class is too small for goes to the others).
        min_per_class: each class keeps at least this many, or all where it has fewer.
        densities: relative density of each class as a (numerator, denominator), which multiplies
            what the balance gives it; equal for all when left out. Classes of density 0 get what
            the others have no samples for, each in proportion to its size.

    Returns:
        One number for each class, of sum `total`.
    """
    weights = [size if balance == "proportional" else min(size, 1) for size in class_sizes]
    if densities is not None:
        common = math.lcm(*(denominator for _, denominator in densities))
        weights = [
            weight * numerator * (common // denominator)
            for weight, (numerator, denominator) in zip(weights, densities, strict=True)
        ]
    least = [min(size, min_per_class) for size in class_sizes]
    quotas = apportion(total, weights, least, class_sizes)
    if sum(quotas) < total:
        quotas = apportion(total, class_sizes, quotas, class_sizes)
    return quotas
