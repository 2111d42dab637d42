"""Generate the random numbers of views with Philox 4x64-10, a counter-based generator.

A draw is a function of a key and a counter and has no state, so every thread, process and order
gives the same numbers. numpy has the same generator (`numpy.random.Philox`), and the tests compare
the two. This one exists because numba compiles the decoder.

References:
    Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3.
"""

from __future__ import annotations

import numpy as np

from kdcache.compiled import compiled

_MULTIPLIER_0 = np.uint64(0xD2E7470EE14C6C93)
_MULTIPLIER_1 = np.uint64(0xCA5A826395121157)
_WEYL_0 = np.uint64(0x9E3779B97F4A7C15)
_WEYL_1 = np.uint64(0xBB67AE8584CAA73B)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_ROUNDS = 10


@compiled(inline="always")
def _multiply_high(a: np.uint64, b: np.uint64) -> np.uint64:
    """Return the upper 64 bits of a 64 x 64 bit product."""
    a_low, a_high = a & _LOW, a >> _HALF
    b_low, b_high = b & _LOW, b >> _HALF
    middle = a_high * b_low + ((a_low * b_low) >> _HALF)
    other = a_low * b_high + (middle & _LOW)
    return a_high * b_high + (middle >> _HALF) + (other >> _HALF)


@compiled()
def philox(
    seed: np.uint64, stream: np.uint64, sample_id: np.uint64, view: np.uint64, block: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    """Return four independent uint64.

    Args:
        seed: uint64, first word of the key: the user's seed.
        stream: uint64, second word of the key: the purpose of the numbers.
        sample_id: uint64, first word of the counter.
        view: uint64, second word of the counter.
        block: uint64, third word of the counter: the index of the block of four numbers.
    """
    c0, c1, c2, c3 = sample_id, view, block, np.uint64(0)
    k0, k1 = seed, stream
    for _ in range(_ROUNDS):
        high_0 = _multiply_high(_MULTIPLIER_0, c0)
        high_1 = _multiply_high(_MULTIPLIER_1, c2)
        low_0 = _MULTIPLIER_0 * c0
        low_1 = _MULTIPLIER_1 * c2
        c0, c1, c2, c3 = high_1 ^ c1 ^ k0, low_1, high_0 ^ c3 ^ k1, low_0
        k0 += _WEYL_0
        k1 += _WEYL_1
    return c0, c1, c2, c3


@compiled()
def uniform(bits: np.uint64) -> np.float64:
    """Return a float64 in [0, 1) from the upper 53 bits of a uint64."""
    return np.float64(bits >> np.uint64(11)) * 2.0**-53


@compiled()
def below(bits: np.uint64, count: int | np.int64) -> np.int64:
    """Return an int64 in [0, count); the bias is below count / 2^53."""
    return np.int64(uniform(bits) * count)


@compiled()
def log_uniform(bits: np.uint64, log_low: float, log_high: float) -> float:
    """Return a float64 between e^log_low and e^log_high whose logarithm is uniform."""
    return exp(log_low + uniform(bits) * (log_high - log_low))


@compiled()
def exp(x: float) -> float:
    """Return e^x, computed only with additions and multiplications.

    The last bit of the C library's `exp` differs between processors, but boxes must not differ.
    The relative error is below 2e-13 for |x| <= 8.
    """
    reduced = x / 256.0
    term = 1.0
    total = 1.0
    for k in range(1, 9):
        term = term * reduced / k
        total = total + term
    for _ in range(8):
        total = total * total
    return total
