from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kdcache.errors import ConfigError
from kdcache.reader.order import BLOCK_SAMPLES, WINDOW_BLOCKS, batch_bounds, epoch_order
from tests.conftest import ROOT

ORDERS = ["random", "block-random", "sequential"]
IDS = st.lists(st.integers(0, 2**40), unique=True, max_size=200).map(sorted).map(np.array)
SEEDS = st.integers(0, 2**63)
EPOCHS = st.integers(0, 1000)


@pytest.mark.parametrize("order", ORDERS)
@given(IDS, SEEDS, EPOCHS)
@settings(deadline=None, max_examples=30)
def test_an_epoch_order_is_a_permutation_of_the_subset(order, ids, seed, epoch):
    before = ids.copy()
    ordered = epoch_order(ids, seed=seed, epoch=epoch, order=order)
    assert sorted(ordered) == sorted(ids)
    assert np.array_equal(ids, before)


@pytest.mark.parametrize("order", ORDERS)
@given(IDS, SEEDS, EPOCHS, st.integers(1, 9))
@settings(deadline=None, max_examples=30)
def test_ranks_part_the_order_into_nearly_equal_shares(order, ids, seed, epoch, world_size):
    shares = [
        epoch_order(ids, seed=seed, epoch=epoch, rank=rank, world_size=world_size, order=order)
        for rank in range(world_size)
    ]
    assert sorted(np.concatenate(shares)) == sorted(ids)
    lengths = [len(share) for share in shares]
    assert max(lengths) - min(lengths) <= 1


@given(st.integers(1, 60), st.integers(1, 9))
@settings(deadline=None, max_examples=50)
def test_a_step_of_all_ranks_takes_what_one_rank_would_take(count, world_size):
    # The order itself does not know of ranks: the same samples are seen early, with any number.
    whole = epoch_order(np.arange(count), seed=0, epoch=3)
    shares = [
        epoch_order(np.arange(count), seed=0, epoch=3, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    first = [share[0] for share in shares if len(share)]
    assert first == whole[:world_size].tolist()


@pytest.mark.parametrize("order", ["random", "block-random"])
@pytest.mark.parametrize(("seed", "epoch"), [(1, 0), (0, 1), (1, 1)])
def test_another_seed_or_epoch_is_another_order(order, seed, epoch):
    ids = np.arange(100)
    first = epoch_order(ids, seed=0, epoch=0, order=order)
    assert np.array_equal(epoch_order(ids, seed=0, epoch=0, order=order), first)
    assert not np.array_equal(epoch_order(ids, seed=seed, epoch=epoch, order=order), first)


def test_sequential_order_is_that_of_the_file():
    ids = np.arange(100) * 3
    assert np.array_equal(epoch_order(ids, seed=1, epoch=2, order="sequential"), ids)


def test_block_random_order_reads_random_blocks_and_mixes_them():
    count = 3 * BLOCK_SAMPLES * WINDOW_BLOCKS
    ordered = epoch_order(np.arange(count), seed=0, epoch=0, order="block-random")
    windows = ordered.reshape(3, -1)
    for window in windows:
        # What is read at one time is whole blocks, from anywhere in the file, and no order is left.
        blocks, samples = np.unique(window // BLOCK_SAMPLES, return_counts=True)
        assert samples.tolist() == [BLOCK_SAMPLES] * WINDOW_BLOCKS
        assert blocks.max() - blocks.min() > 2 * WINDOW_BLOCKS
        assert abs(stats.spearmanr(window, np.arange(len(window))).statistic) < 0.05


def test_seed_and_epoch_are_not_added():
    ids = np.arange(100)
    first = epoch_order(ids, seed=0, epoch=1)
    assert not np.array_equal(epoch_order(ids, seed=1, epoch=0), first)


def test_every_place_is_equally_likely():
    counts = np.zeros((8, 8))
    for epoch in range(4000):
        counts[np.arange(8), epoch_order(np.arange(8), seed=0, epoch=epoch)] += 1
    # Seeds are fixed: this passes always or never.
    assert stats.chisquare(counts.ravel(), ddof=14).pvalue > 1e-3


@pytest.mark.parametrize(("rank", "world_size"), [(-1, 2), (2, 2), (0, 0), (3, 1)])
def test_a_rank_outside_the_world_is_refused(rank, world_size):
    with pytest.raises(ConfigError, match=rf"rank is {rank}, expected .* \[0, {world_size}\)"):
        epoch_order(np.arange(10), seed=0, epoch=0, rank=rank, world_size=world_size)


def test_a_negative_seed_is_refused():
    with pytest.raises(ConfigError, match="seed is -1"):
        epoch_order(np.arange(10), seed=-1, epoch=0)


def test_an_epoch_order_never_changes():
    for case in json.loads((ROOT / "tests" / "golden" / "epoch_order.json").read_text()):
        ids = np.arange(case["samples"])
        order = epoch_order(ids, seed=case["seed"], epoch=case["epoch"])
        assert order.tolist() == case["order"]


@given(st.integers(1, 10_000), st.integers(1, 300))
@settings(deadline=None, max_examples=200)
def test_batches_are_the_fewest_and_differ_by_at_most_one(num_samples, batch_size):
    bounds = batch_bounds(num_samples, batch_size)
    sizes = np.diff(bounds)
    assert (bounds[0], bounds[-1]) == (0, num_samples)
    assert len(sizes) == -(-num_samples // batch_size)
    assert sizes.max() <= batch_size
    assert sizes.max() - sizes.min() <= 1
    assert sizes.min() >= 1


@given(st.integers(3, 10_000), st.integers(3, 300))
@settings(deadline=None, max_examples=200)
def test_no_batch_of_one_is_left_over(num_samples, batch_size):
    assert np.diff(batch_bounds(num_samples, batch_size)).min() >= 2


def test_no_samples_are_no_batches():
    assert batch_bounds(0, 8).tolist() == [0]
