from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kdcache.data.philox import below, exp, philox, uniform

WORDS = st.integers(0, 2**64 - 1)
LARGEST = 2**64 - 1


def numpys_philox(seed, stream, sample_id, view, block):
    """Return numpy's generator, about to give the block with that counter."""
    counter = sample_id | view << 64 | block << 128
    # numpy increments the 256-bit counter before its first block.
    return np.random.Philox(key=seed | stream << 64, counter=(counter - 1) % 2**256)


@given(WORDS, WORDS, WORDS, WORDS, WORDS)
@example(0, 0, 0, 0, 0)
@example(LARGEST, LARGEST, LARGEST, LARGEST, LARGEST)
@settings(deadline=None, max_examples=200)
def test_a_block_is_the_one_of_numpys_philox(seed, stream, sample_id, view, block):
    words = philox(*(np.uint64(word) for word in (seed, stream, sample_id, view, block)))
    expected = numpys_philox(seed, stream, sample_id, view, block).random_raw(4)
    assert [int(word) for word in words] == expected.tolist()


@given(WORDS, WORDS)
@settings(deadline=None, max_examples=50)
def test_uniform_numbers_are_those_of_numpy(seed, sample_id):
    zero = np.uint64(0)
    words = philox(np.uint64(seed), zero, np.uint64(sample_id), zero, zero)
    generator = np.random.Generator(numpys_philox(seed, 0, sample_id, 0, 0))
    assert [uniform(np.uint64(word)) for word in words] == generator.random(4).tolist()


@pytest.mark.parametrize(
    ("bits", "expected"), [(0, 0.0), (2**63, 0.5), (2**11 - 1, 0.0), (LARGEST, 1 - 2**-53)]
)
def test_uniform_numbers_lie_in_the_half_open_interval(bits, expected):
    assert uniform(np.uint64(bits)) == expected


@given(st.integers(1, 2**31 - 1))
@settings(deadline=None, max_examples=200)
def test_below_stays_below_its_count_at_the_largest_draw(count):
    assert below(np.uint64(LARGEST), count) == count - 1
    assert below(np.uint64(0), count) == 0


@pytest.mark.parametrize("count", [1, 3, 9, 1000])
def test_below_gives_every_number_an_equal_share_of_the_draws(count):
    step = 2**64 // count
    middles = [below(np.uint64(number * step + step // 2), count) for number in range(count)]
    assert middles == list(range(count))
    # A little before and after each border; 2^20 is far more than the rounding.
    borders = [-(-number * 2**64 // count) for number in range(1, count)]
    assert [below(np.uint64(border - 2**20), count) for border in borders] == middles[:-1]
    assert [below(np.uint64(border + 2**20), count) for border in borders] == middles[1:]


def test_no_draw_hangs_on_the_c_librarys_exponential():
    for x in np.linspace(-8, 8, 4001):
        assert abs(exp(x) / math.exp(x) - 1) < 2e-13
