"""Read and write arrays of a store shard by shard, and name a damaged, missing or foreign shard.

Zarr returns fill values for a missing chunk, and does not know where a chunk belongs. So kdcache
reads and writes the shard files itself, in Zarr's format (`kdcache.store.format.shard_file`); each
read compares the identity in the file with the place of the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from kdcache.errors import CacheCorruptError
from kdcache.store.format.layout import (
    CODEC_ATTRIBUTE,
    STORE_ATTRIBUTE,
    Array,
    get_array,
    num_shards,
    shard_key,
)
from kdcache.store.format.location import display_name, read_keys, read_starts, write_key
from kdcache.store.format.shard_file import (
    RECORD_BYTES,
    ShardIdentity,
    assemble,
    problem_of,
    problem_of_record,
    values_of,
)

MAX_SHARDS_PER_READ = 4
"""Maximum number of adjacent shards in one read; they are read concurrently."""


def shard_identity(array: Array, shard: int) -> ShardIdentity:
    """Return the identity that a shard of an array must carry.

    `kdcache.store.format.specs` compares the attributes of the array with the manifest.
    """
    rows = array.chunks[0]
    return ShardIdentity(
        store=str(array.attrs.get(STORE_ATTRIBUTE)),
        array=array.path,
        block=shard,
        first=shard * rows,
        end=min((shard + 1) * rows, array.shape[0]),
        codec=str(array.attrs.get(CODEC_ATTRIBUTE, "")),
    )


def write_shard(group: zarr.Group, name: str, shard: int, values: npt.NDArray[Any]) -> None:
    """Write one shard of an array; it appears complete, under its identity, or not at all.

    Args:
        group: writable group of the store.
        name: name of an existing array.
        shard: index of the shard.
        values: (n, ...) rows; n is the rows of a shard, or fewer in the last one.

    Raises:
        ValueError: if the rows do not have the shape of the shard.
    """
    array = get_array(group, name)
    identity = shard_identity(array, shard)
    expected = (identity.end - identity.first, *array.shape[1:])
    if values.shape != expected:
        raise ValueError(f"shard {shard} of {name} has shape {values.shape}, expected {expected}")
    stored = values.astype(array.dtype, copy=False)
    write_key(group.store, shard_key(array, shard), assemble(identity, stored, array.chunks[0]))


def read_whole(group: zarr.Group, name: str) -> npt.NDArray[Any]:
    """Return a whole array of a store.

    Raises:
        CacheCorruptError: if a shard is missing, damaged or of another place; names it.
    """
    array = get_array(group, name)
    found = np.empty(array.shape, dtype=array.dtype)
    rows = array.chunks[0]
    for shard, values in _read(group, array, np.arange(num_shards(array))):
        part = found[shard * rows : (shard + 1) * rows]
        part[...] = values[: len(part)]
    return found


def problems_of_shards(
    group: zarr.Group, name: str, shards: Iterable[int]
) -> Iterator[tuple[int, str | None]]:
    """Read some shards of an array whole; yield each index and what is wrong with the shard.

    Args:
        group: group of the store.
        name: name of an array.
        shards: indices, in rising order.
    """
    array = get_array(group, name)
    size = _chunk_bytes(array)
    for shard, content in _contents(group, array, np.array(list(shards), dtype=np.int64)):
        if content is None:
            yield shard, "is missing"
        else:
            yield shard, problem_of(shard_identity(array, shard), content, size)


def foreign_shards(group: zarr.Group, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the key and the problem of each shard that is missing or belongs elsewhere.

    Only the first bytes of each shard are read, so damage to its values is not found.
    """
    for name in names:
        array = get_array(group, name)
        keys = [shard_key(array, shard) for shard in range(num_shards(array))]
        for shard, record in enumerate(read_starts(group.store, keys, RECORD_BYTES)):
            if record is None:
                yield keys[shard], "is missing"
            elif problem := problem_of_record(shard_identity(array, shard), record.tobytes()):
                yield keys[shard], problem


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
        CacheCorruptError: if a shard is missing, damaged or of another place; names it.
    """
    array = get_array(group, name)
    if out is None:
        out = np.empty((len(positions), array.shape[1]), dtype=array.dtype)
    by_position = np.argsort(positions, kind="stable")
    ordered = positions[by_position]
    rows = array.chunks[0]
    for shard, values in _read(group, array, np.unique(ordered // rows)):
        start = shard * rows
        part = slice(*np.searchsorted(ordered, [start, start + rows]))
        out[by_position[part]] = values[ordered[part] - start]
    return out


def _read(
    group: zarr.Group, array: Array, shards: npt.NDArray[np.int64]
) -> Iterator[tuple[int, npt.NDArray[np.generic]]]:
    """Yield (index, values) of shards in rising order; values have the rows of a full shard.

    Raises:
        CacheCorruptError: if a shard is missing, damaged or of another place; names it.
    """
    size = _chunk_bytes(array)
    for shard, content in _contents(group, array, shards):
        problem = (
            "is missing"
            if content is None
            else problem_of(shard_identity(array, shard), content, size)
        )
        if content is None or problem is not None:
            raise CacheCorruptError(
                f"{shard_key(array, shard)} of {display_name(group.store)} {problem}. "
                "Run kdcache verify --repair"
            )
        yield shard, values_of(content, np.dtype(array.dtype), array.chunks)


def _contents(
    group: zarr.Group, array: Array, shards: npt.NDArray[np.int64]
) -> Iterator[tuple[int, npt.NDArray[np.uint8] | None]]:
    """Yield (index, bytes) of shards. The next ones are read while the caller uses the last."""
    runs = [range(first, last) for first, last in _runs(shards)]
    keys = [[shard_key(array, shard) for shard in run] for run in runs]
    if len(runs) < 2:  # noqa: PLR2004  (nothing to read ahead)
        for run, names in zip(runs, keys, strict=True):
            yield from zip(run, read_keys(group.store, names), strict=True)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="kdcache-shards") as pool:
        ahead = pool.submit(read_keys, group.store, keys[0])
        for number, run in enumerate(runs):
            contents = ahead.result()
            if number + 1 < len(runs):
                ahead = pool.submit(read_keys, group.store, keys[number + 1])
            yield from zip(run, contents, strict=True)


def _chunk_bytes(array: Array) -> int:
    return int(np.prod(array.chunks)) * np.dtype(array.dtype).itemsize


def _runs(shards: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield [first, last) runs of neighbouring shards, at most `MAX_SHARDS_PER_READ` long."""
    if not len(shards):
        return
    ends = np.flatnonzero(np.diff(shards) != 1) + 1
    for run in np.split(shards, ends):
        for first in range(0, len(run), MAX_SHARDS_PER_READ):
            part = run[first : first + MAX_SHARDS_PER_READ]
            yield int(part[0]), int(part[-1]) + 1
