"""Ratio-adaptive sampling: a Beta distribution over the difficulty, easier where less is kept.

A sample at the quantile s of its group is drawn with a weight of s^(a-1) (1-s)^(b-1), without
replacement. The draw adds Gumbel noise to the logarithm of the weight and keeps the largest: one
pass and one partition, the same distribution as drawing one sample after the other.

References:
    Wu et al. 2026, "Distill on a Diet" (IF-Beta): a = tau mu + 1, b = tau (1 - mu) + 1 over the
    percentile. Cho et al. 2025 (DUAL): how the peak moves with the share that is pruned.
    Efraimidis, Spirakis 2006, "Weighted random sampling with a reservoir": the keys.
"""

from __future__ import annotations

import numpy as np

from kdcache.compiled import compiled
from kdcache.selection.context import Group, SelectionContext
from kdcache.selection.ranking import ID_MASK, KEY_SHIFT, Entries, float_key, redraw

DEFAULT_CONCENTRATION = 14.0
"""DUAL's a + b is 16."""

_LN_2 = 0.6931471805599453
_SQRT_2 = 1.4142135623730951
_C3, _C5, _C7, _C9, _C11, _C13, _C15 = (1 / k for k in range(3, 17, 2))
_MANTISSA_BITS, _MANTISSA, _ONE = np.uint64(52), np.uint64(2**52 - 1), np.uint64(1023 << 52)


def default_peak(keep: float) -> float:
    """Return the quantile of difficulty that is drawn most: 0.5 (1 - (1 - keep)^4).

    DUAL's schedule for CIFAR-100, with its most uncertain samples taken to lie in the middle. A
    placeholder until a sweep of our own: IF-Beta searches for the peak of each data set.
    """
    pruned = 1 - keep
    return 0.5 * (1 - pruned * pruned * pruned * pruned)


def beta(group: Group, quota: int, context: SelectionContext) -> Entries:
    """Keep samples drawn by the Beta density of their quantile. The group is changed in place.

    `--peak` is mu, the quantile with the highest density, in [0, 1]; `--concentration` is tau >= 0,
    and 0 draws all alike.
    """
    entries = group.entries
    if quota == len(group):
        return entries
    options = context.options
    peak = default_peak(options.keep) if options.peak is None else options.peak
    concentration = options.concentration
    if concentration is None:
        concentration = DEFAULT_CONCENTRATION
    redraw(entries, context.draws)
    _draw_keys(entries, concentration * peak, concentration * (1 - peak))
    first = len(group) - quota
    entries.partition(first)
    return entries[first:]


@compiled()
def _draw_keys(entries: Entries, on_hard: float, on_easy: float) -> None:
    """Put log weight + Gumbel noise in the place of the draw, as a float32."""
    count = len(entries)
    for place in range(count):
        sample_id = entries[place] & ID_MASK
        quantile = (place + 0.5) / count
        uniform = (np.float64(entries[place] >> KEY_SHIFT) + 0.5) / 4294967296.0
        log_weight = on_hard * _log(quantile) + on_easy * _log(1.0 - quantile)
        key = np.float32(log_weight - _log(-_log(uniform)))
        entries[place] = (np.uint64(float_key(key.view(np.uint32))) << KEY_SHIFT) | sample_id


@compiled(inline="always")
def _log(x: float) -> float:
    """Return the natural logarithm of a normal number, from basic operations alone.

    C libraries round its last bit differently from one processor to the next, and two samples could
    change places. Relative error below 1e-13.
    """
    bits = np.float64(x).view(np.uint64)
    exponent = np.float64(np.int64(bits >> _MANTISSA_BITS) - 1023)
    mantissa = np.uint64((bits & _MANTISSA) | _ONE).view(np.float64)
    if mantissa > _SQRT_2:
        mantissa, exponent = 0.5 * mantissa, exponent + 1.0
    # log m = 2 artanh((m - 1) / (m + 1)), with |ratio| below 0.172.
    ratio = (mantissa - 1.0) / (mantissa + 1.0)
    t = ratio * ratio
    series = t * (_C9 + t * (_C11 + t * (_C13 + t * _C15)))
    series = 1.0 + t * (_C3 + t * (_C5 + t * (_C7 + series)))
    return 2.0 * ratio * series + exponent * _LN_2
