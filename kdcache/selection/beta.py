"""Sampling by a Beta density over the difficulty, whose peak is easier if fewer samples are kept.

Samples are drawn without replacement. A sample at the quantile s of its group has the weight
s^(a-1) (1-s)^(b-1). The code adds Gumbel noise to the log weights and keeps the largest sums (one
pass and one partition), which has the same distribution as drawing one sample after the other.

References:
    Wu et al. 2026, "Distill on a Diet" (IF-Beta): a = tau mu + 1, b = tau (1 - mu) + 1 over the
    percentile. Cho et al. 2025 (DUAL): how the peak moves with the fraction that is pruned.
    Efraimidis, Spirakis 2006, "Weighted random sampling with a reservoir": the keys.
"""

from __future__ import annotations

import numpy as np

from kdcache.compiled import compiled
from kdcache.selection.context import Group, SelectionContext
from kdcache.selection.ranking import ID_MASK, KEY_SHIFT, Entries, float_key, redraw

DEFAULT_CONCENTRATION = 14.0
"""tau = a + b - 2; DUAL uses a + b = 16."""

_LN_2 = 0.6931471805599453
_SQRT_2 = 1.4142135623730951
_C3, _C5, _C7, _C9, _C11, _C13, _C15 = (1 / k for k in range(3, 17, 2))
_MANTISSA_BITS, _MANTISSA, _ONE = np.uint64(52), np.uint64(2**52 - 1), np.uint64(1023 << 52)


def default_peak(keep: float) -> float:
    """Return the quantile of difficulty with the highest density: 0.5 (1 - (1 - keep)^4).

    This is DUAL's schedule for CIFAR-100, if its most uncertain samples are those of medium
    difficulty. It is a placeholder: IF-Beta searches for the peak of each data set.
    """
    pruned = 1 - keep
    return 0.5 * (1 - pruned * pruned * pruned * pruned)


def beta(group: Group, quota: int, context: SelectionContext) -> Entries:
    """Draw samples with the Beta density of their quantile. Changes the group in place.

    `--peak` is mu, the quantile with the highest density, in [0, 1]. `--concentration` is
    tau >= 0; with 0, all samples have the same weight.
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
def _draw_keys(entries: Entries, hard_exponent: float, easy_exponent: float) -> None:
    """Replace the draw in each entry by the float32 key log weight + Gumbel noise."""
    count = len(entries)
    for index in range(count):
        sample_id = entries[index] & ID_MASK
        quantile = (index + 0.5) / count
        uniform = (np.float64(entries[index] >> KEY_SHIFT) + 0.5) / 4294967296.0
        log_weight = hard_exponent * _log(quantile) + easy_exponent * _log(1.0 - quantile)
        key = np.float32(log_weight - _log(-_log(uniform)))
        entries[index] = (np.uint64(float_key(key.view(np.uint32))) << KEY_SHIFT) | sample_id


@compiled(inline="always")
def _log(x: float) -> float:
    """Return the natural logarithm of a normal number, computed with basic operations only.

    The last bit of the C library's logarithm differs between processors, which could swap two
    samples. The relative error is below 1e-13.
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
