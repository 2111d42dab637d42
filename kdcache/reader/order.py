"""The order of an epoch, each rank's share of it, and where batches begin."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kdcache.errors import ConfigError
from kdcache.rng import generator


def epoch_order(
    sample_ids: npt.NDArray[np.int64], *, seed: int, epoch: int, rank: int = 0, world_size: int = 1
) -> npt.NDArray[np.int64]:
    """Return one rank's sample ids in the order of an epoch.

    The ranks' shares are disjoint, together they are all ids, and their lengths differ by at most
    one.

    Args:
        sample_ids: (n,) unique.
        seed: of the draw named ("order", epoch).
        epoch: from 0.
        rank: in [0, world_size).
        world_size: number of ranks.
    """
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank is {rank}, expected a number in [0, {world_size})")
    return generator(seed, "order", epoch).permutation(sample_ids)[rank::world_size]


def batch_bounds(num_samples: int, batch_size: int) -> npt.NDArray[np.int64]:
    """Return the first position of each batch, and the end.

    There are ceil(num_samples / batch_size) batches whose sizes differ by at most one: nothing is
    dropped, and no batch of one sample is left for BatchNorm to fail on.

    Returns:
        (batches + 1,) int64, from 0 to `num_samples`.
    """
    batches = -(-num_samples // batch_size)
    return np.arange(batches + 1, dtype=np.int64) * num_samples // max(batches, 1)
