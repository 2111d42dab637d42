"""Compute the order of an epoch, its division between ranks, and the bounds of its batches."""

from __future__ import annotations

from typing import get_args

import numpy as np
import numpy.typing as npt

from kdcache.errors import ConfigError
from kdcache.options import Order
from kdcache.rng import generator

BLOCK_SAMPLES = 64
"""Number of neighbours in the file that block-random order reads together: about one 8 MiB page of
photos."""

WINDOW_BLOCKS = 64
"""Number of blocks that are mixed with each other: 4,096 samples."""


def epoch_order(
    sample_ids: npt.NDArray[np.int64],
    *,
    seed: int,
    epoch: int,
    rank: int = 0,
    world_size: int = 1,
    order: Order = "random",
) -> npt.NDArray[np.int64]:
    """Return one rank's sample ids in the order of an epoch.

    The parts of the ranks are disjoint, together they hold all ids, and their lengths differ by at
    most one.

    Args:
        sample_ids: (n,) unique, in the order of the file.
        seed: seed of the draw named ("order", epoch).
        epoch: number of the epoch, from 0.
        rank: in [0, world_size).
        world_size: number of ranks.
        order: `random`; `block-random` (mixed within windows of random blocks of neighbours, for
            data larger than memory); `sequential` (the order of the file).
    """
    if order not in get_args(Order):
        raise ConfigError(f"order is {order!r}, expected one of {', '.join(get_args(Order))}")
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank is {rank}, expected a number in [0, {world_size})")
    if seed < 0:
        raise ConfigError(f"seed is {seed}, expected a number of at least 0")
    rng = generator(seed, "order", epoch)
    if order == "random":
        return rng.permutation(sample_ids)[rank::world_size]
    ordered = sample_ids if order == "sequential" else _mix_blocks(sample_ids, rng)
    # Neighbours stay with one rank: each reads its own part of the file.
    return np.array_split(ordered, world_size)[rank]


def _mix_blocks(
    sample_ids: npt.NDArray[np.int64], rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    blocks = np.split(sample_ids, np.arange(BLOCK_SAMPLES, len(sample_ids), BLOCK_SAMPLES))
    drawn = [blocks[number] for number in rng.permutation(len(blocks))]
    windows = [
        rng.permutation(np.concatenate(drawn[first : first + WINDOW_BLOCKS]))
        for first in range(0, len(drawn), WINDOW_BLOCKS)
    ]
    return np.concatenate(windows)


def batch_bounds(num_samples: int, batch_size: int) -> npt.NDArray[np.int64]:
    """Return the indices at which the batches of an epoch begin, and the number of samples.

    There are ceil(num_samples / batch_size) batches, whose sizes differ by at most one. So no
    sample is dropped, and there is no batch of one sample, on which BatchNorm would fail (unless
    there are so few samples that batches have one or two).

    Returns:
        (batches + 1,) int64, from 0 to `num_samples`.
    """
    batches = -(-num_samples // batch_size)
    return np.arange(batches + 1, dtype=np.int64) * num_samples // max(batches, 1)
