"""Compute the size of a store before it is built."""

from __future__ import annotations

import numpy as np

from kdcache.store.codecs.codec import Codec
from kdcache.store.format.layout import PER_SAMPLE_ARRAYS
from kdcache.store.format.shard_file import OVERHEAD_BYTES

LABEL_BYTES = ID_BYTES = 8

ARRAYS_OF_ONE_CHUNK = 3
"""Number of one-chunk arrays: labels, sample ids and pixel probe."""

METADATA_BYTES = 1_200
"""Approximate bytes of the zarr.json of an array."""


def rows_bytes(num_rows: int, num_views: int, row_bytes: int, *, shard_rows: int = 1) -> int:
    """Return the bytes of the rows of some views. The last shard of a view is padded.

    Args:
        num_rows: rows of one view.
        num_views: number of views.
        row_bytes: bytes of one row, such as `Codec.row_bytes`.
        shard_rows: rows of one shard.
    """
    shards = -(-num_rows // shard_rows)
    return num_views * shards * shard_rows * row_bytes


def store_bytes(
    codec: Codec,
    clean: Codec,
    *,
    num_samples: int,
    num_rows: int,
    num_views: int,
    shard_rows: int,
) -> int:
    """Return the bytes of a store, within 1 % for stores of a few MB or more.

    Args:
        codec: codec of the augmented views.
        clean: codec of view 0.
        num_samples: N, rows of view 0.
        num_rows: M, rows per augmented view.
        num_views: V.
        shard_rows: rows of one shard.
    """
    rows = rows_bytes(num_samples, 1, clean.row_bytes, shard_rows=shard_rows)
    rows += rows_bytes(num_rows, num_views, codec.row_bytes, shard_rows=shard_rows)
    per_sample = sum(np.dtype(dtype).itemsize for dtype in PER_SAMPLE_ARRAYS.values())
    samples = rows_bytes(num_samples, 1, per_sample, shard_rows=shard_rows)
    samples += num_samples * LABEL_BYTES + num_rows * ID_BYTES
    fitted = sum(array.nbytes for array in codec.arrays.values())
    shards = (len(PER_SAMPLE_ARRAYS) + 1) * -(-num_samples // shard_rows)
    shards += num_views * -(-num_rows // shard_rows)
    arrays = len(PER_SAMPLE_ARRAYS) + ARRAYS_OF_ONE_CHUNK + 1 + num_views
    return rows + samples + fitted + shards * OVERHEAD_BYTES + arrays * METADATA_BYTES
