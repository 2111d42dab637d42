"""Read arrays of a store shard by shard, and name a damaged or missing shard.

For a missing chunk zarr returns fill values. Opening a store checks that all shards exist, but a
shard can vanish during the hours of reading after that. So each read checks it too, at no cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.store import ByteRequest, Store
from zarr.core.array import AsyncArray
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import StorePath, WrapperStore

from kdcache.errors import CacheCorruptError
from kdcache.store.format.layout import get_array, shard_key
from kdcache.store.format.location import display_name

MAX_SHARDS_PER_READ = 4
"""Maximum number of adjacent shards in one read; zarr reads them concurrently."""


class _RequiringStore(WrapperStore[Store]):
    """A Zarr store that raises if a key does not exist."""

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        found = await super().get(key, prototype, byte_range)
        if found is None:
            raise FileNotFoundError(key)
        return found


def read_whole(group: zarr.Group, name: str) -> npt.NDArray[Any]:
    """Return a whole array of a store.

    Raises:
        CacheCorruptError: if a shard is missing, or its bytes differ from its checksum; names it.
    """
    return read_shards(group, name, 0, get_array(group, name).shape[0])


def shard_damage(group: zarr.Group, name: str, shard: int) -> str | None:
    """Return the damage of one shard, or None."""
    array = _requiring(get_array(group, name))
    size = array.chunks[0]
    try:
        array[shard * size : (shard + 1) * size]
    except FileNotFoundError:
        return "is missing"
    except (ValueError, RuntimeError) as error:
        return f"holds bytes that differ from their checksum: {error}"
    return None


def read_rows(
    group: zarr.Group,
    name: str,
    positions: npt.NDArray[np.int64],
    *,
    out: npt.NDArray[np.generic] | None = None,
) -> npt.NDArray[np.generic]:
    """Return rows of an array, in any order. Each shard is read once.

    Args:
        group: group of the store.
        name: name of an array (rows, width).
        positions: (n,) indices of the rows.
        out: (n, width); the rows are written here if given.

    Raises:
        CacheCorruptError: if a shard is missing, or its bytes differ from its checksum; names it.
    """
    array = get_array(group, name)
    if out is None:
        out = np.empty((len(positions), array.shape[1]), dtype=array.dtype)
    by_position = np.argsort(positions, kind="stable")
    ordered = positions[by_position]
    shard_rows = array.chunks[0]
    for first, last in _runs(np.unique(ordered // shard_rows)):
        start, stop = first * shard_rows, last * shard_rows
        part = slice(*np.searchsorted(ordered, [start, stop]))
        block = read_shards(group, name, start, stop)
        out[by_position[part]] = block[ordered[part] - start]
    return out


def read_shards(group: zarr.Group, name: str, start: int, stop: int) -> npt.NDArray[Any]:
    """Return the rows from `start` to `stop` of an array.

    Raises:
        CacheCorruptError: if a shard is missing, or its bytes differ from its checksum; names it.
    """
    array = _requiring(get_array(group, name))
    try:
        return np.asarray(array[start:stop])
    except (FileNotFoundError, ValueError, RuntimeError):
        size = array.chunks[0]
        for shard in range(start // size, -(-stop // size)):
            if found := shard_damage(group, name, shard):
                raise CacheCorruptError(
                    f"{shard_key(group, name, shard)} of {display_name(group.store)} {found}. "
                    "Run kdcache verify --repair"
                ) from None
        raise


def _requiring(array: zarr.Array) -> zarr.Array:  # type: ignore[type-arg]
    zarr_store = StorePath(_RequiringStore(array.store), array.path)
    return zarr.Array(AsyncArray(array.metadata, zarr_store, array.async_array.config))


def _runs(shards: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield [first, last) runs of neighbouring shards, at most `MAX_SHARDS_PER_READ` long."""
    ends = np.flatnonzero(np.diff(shards) != 1) + 1
    for run in np.split(shards, ends):
        for first in range(0, len(run), MAX_SHARDS_PER_READ):
            part = run[first : first + MAX_SHARDS_PER_READ]
            yield int(part[0]), int(part[-1]) + 1
