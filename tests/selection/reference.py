"""Every policy once more, from its formula: slow, one sample at a time, no sorting tricks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np


def ranked(values: Sequence[Any], sample_ids: Sequence[int]) -> list[int]:
    """Return ids by ascending value, ties to the smaller id."""
    return sorted(sample_ids, key=lambda sample_id: (values[sample_id], sample_id))


def random_draws(seed: int, count: int) -> list[int]:
    """Return 32 random bits for each sample id: the lower half of each 64 first."""
    words = np.random.default_rng([seed, 1274211008]).bit_generator.random_raw(count)
    halves = [half for word in words.tolist() for half in (word % 2**32, word // 2**32)]
    return halves[:count]


def mdslr(order: list[int], num: int) -> list[int]:
    """Keep the window of MDSLR's published code: above the middle first, then below it."""
    if num >= len(order):
        return order
    middle = len(order) // 2
    above = order[middle : middle + num // 2]
    below = order[middle - (num - num // 2) : middle]
    return above + below


def window(order: list[int], num: int, start: float) -> list[int]:
    """Keep from a quantile on; where too few lie above it, from as far below as is needed."""
    first = math.floor(start * len(order) + 0.5)
    while first + num > len(order):
        first -= 1
    return order[first : first + num]


def stratified(
    order: list[int], num: int, scores: Sequence[float], draws: Sequence[int], cut: float
) -> list[int]:
    """CCS: drop the hardest, 50 bins of equal width, equal numbers of each, at random."""
    survivors = order[: max(len(order) - math.floor(cut * len(order) + 0.5), num)]
    low, high = float(scores[survivors[0]]), float(scores[survivors[-1]])
    bins: list[list[int]] = [[] for _ in range(50)]
    for sample_id in survivors:
        place = 0 if high == low else int((float(scores[sample_id]) - low) / (high - low) * 50)
        bins[min(place, 49)].append(sample_id)
    kept: list[int] = []
    rest, left = num, 50
    for members in sorted(bins, key=len):
        budget = min(len(members), rest // left)
        kept += ranked(draws, members)[:budget]
        rest, left = rest - budget, left - 1
    return kept


def beta(
    order: list[int], num: int, draws: Sequence[int], peak: float, concentration: float
) -> list[int]:
    """Largest log density + Gumbel noise: a draw without replacement by the Beta density."""
    keys = {}
    for place, sample_id in enumerate(order):
        quantile = (place + 0.5) / len(order)
        a, b = concentration * peak + 1, concentration * (1 - peak) + 1
        density = (a - 1) * math.log(quantile) + (b - 1) * math.log(1 - quantile)
        uniform = (draws[sample_id] + 0.5) / 2**32
        keys[sample_id] = density - math.log(-math.log(uniform))
    return sorted(order, key=lambda sample_id: -keys[sample_id])[:num]


def keep_in_group(
    method: str, scores: Sequence[float], draws: Sequence[int], options: dict[str, float]
) -> Callable[[list[int], int], list[int]]:
    """Return a function of (the ids of a group by score, number) -> the ids to keep."""
    methods: dict[str, Callable[[list[int], int], list[int]]] = {
        "easy": lambda order, num: order[:num],
        "hard": lambda order, num: order[len(order) - num :],
        "medium": mdslr,
        "random": lambda order, num: ranked(draws, order)[:num],
        "class-adaptive": lambda order, num: ranked(draws, order)[:num],
        "window": lambda order, num: window(order, num, options["start"]),
        "stratified": lambda order, num: (
            stratified(order, num, scores, draws, options["cut"]) if num else []
        ),
        "beta": lambda order, num: beta(
            order, num, draws, options["peak"], options["concentration"]
        ),
    }
    return methods[method]


def water_filling(sizes: Sequence[int], total: int) -> list[int]:
    """Deal one sample after the other to the class that has fewest, if it has one left."""
    quotas = [0] * len(sizes)
    for _ in range(total):
        places = [place for place, size in enumerate(sizes) if quotas[place] < size]
        quotas[min(places, key=lambda place: (quotas[place], place))] += 1
    return quotas


def apportion(
    total: int, weights: Sequence[Fraction | int], least: Sequence[int], most: Sequence[int]
) -> list[int]:
    """Find the factor f of clamp(f w, least, most) at the places where the sum bends."""
    places = range(len(weights))

    def shares(factor: Fraction) -> list[Fraction]:
        return [
            min(max(factor * weights[i], Fraction(least[i])), Fraction(most[i]))
            if weights[i]
            else Fraction(least[i])
            for i in places
        ]

    bends = sorted(
        {
            Fraction(bound, 1) / weights[i]
            for i in places
            if weights[i]
            for bound in (least[i], most[i])
        }
        | {Fraction(0)}
    )
    below = max(bend for bend in bends if sum(shares(bend)) <= total)
    above = min((bend for bend in bends if sum(shares(bend)) >= total), default=below)
    factor = below
    if sum(shares(above)) > sum(shares(below)):
        part = (total - sum(shares(below))) / (sum(shares(above)) - sum(shares(below)))
        factor = below + part * (above - below)
    exact = shares(factor)
    quotas = [int(share) for share in exact]
    by_remainder = sorted(places, key=lambda place: (quotas[place] - exact[place], place))
    for place in by_remainder[: int(sum(exact)) - sum(quotas)]:
        quotas[place] += 1
    return quotas
