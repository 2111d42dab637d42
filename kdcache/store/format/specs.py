"""Derive the arrays' shapes, types and shards from the manifest and the codec.

Creating an array only writes its zarr.json. So a damaged zarr.json can be written again without
touching the shards.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import Crc32cCodec
from zarr.storage import MemoryStore

from kdcache.store.format.codec_file import CODECS_WITHOUT_SETTINGS, codec_of
from kdcache.store.format.layout import CODEC_KEY, PER_SAMPLE_ARRAYS, get_array
from kdcache.store.format.location import has_key, read_key, write_key
from kdcache.store.manifest import StoreManifest

CODEC_ATTRIBUTE = "codec_sha256"
"""Attribute of a view's rows: the digest of the codec file that encoded them."""


class ArraySpec(NamedTuple):
    """Shape, type and shards of an array."""

    shape: tuple[int, ...]
    dtype: npt.DTypeLike
    shard_rows: int
    attributes: Mapping[str, str] = {}


def array_spec(group: zarr.Group, manifest: StoreManifest, name: str) -> ArraySpec:
    """Return the spec of an array of the layout.

    Raises:
        CacheIncompleteError: if the codec of a view is not decided yet.
    """
    if name in PER_SAMPLE_ARRAYS:
        return ArraySpec((manifest.samples,), PER_SAMPLE_ARRAYS[name], manifest.shard_rows)
    if name == "labels":
        return ArraySpec((manifest.samples,), np.int64, manifest.samples)
    if name == "sample_ids":
        return ArraySpec((manifest.rows,), np.int64, manifest.rows)
    match = re.fullmatch(r"views/(\d+)/rows", name)
    assert match, name  # noqa: S101  (the layout has no other arrays)
    view = int(match[1])
    codec = codec_of(group, manifest, view)
    shape = (manifest.rows if view else manifest.samples, codec.row_width)
    attributes = {}
    if view and manifest.codec not in CODECS_WITHOUT_SETTINGS:
        attributes[CODEC_ATTRIBUTE] = codec_digest(group)
    return ArraySpec(shape, codec.dtype, manifest.shard_rows, attributes)


def codec_digest(group: zarr.Group) -> str:
    """Return the sha256 of the codec file."""
    return hashlib.sha256(read_key(group.store, CODEC_KEY) or b"").hexdigest()


def is_encoded_with(group: zarr.Group, name: str) -> bool:
    """Return whether rows were encoded with the store's current codec file."""
    return get_array(group, name).attrs.get(CODEC_ATTRIBUTE) == codec_digest(group)


def array_metadata(spec: ArraySpec) -> bytes:
    """Return the zarr.json of an array."""
    zarr_store = MemoryStore()
    zarr.create_group(zarr_store).create_array(
        "array",
        shape=spec.shape,
        dtype=spec.dtype,
        chunks=(max(1, min(spec.shard_rows, spec.shape[0])), *spec.shape[1:]),
        # Logits hardly compress; a checksum in each shard finds bit rot when it is read.
        compressors=[Crc32cCodec()],
        attributes=dict(spec.attributes),
    )
    return read_key(zarr_store, "array/zarr.json") or b""


def group_metadata() -> bytes:
    """Return the zarr.json of a group below the root."""
    zarr_store = MemoryStore()
    zarr.create_group(zarr_store)
    return read_key(zarr_store, "zarr.json") or b""


def create_array(group: zarr.Group, name: str, spec: ArraySpec) -> None:
    """Create an array after its parent groups, so that an existing array has all of them."""
    parts = name.split("/")
    for depth in range(1, len(parts)):
        around = "/".join(parts[:depth])
        key = f"{around}/zarr.json"
        if not has_key(group.store, key):
            write_key(group.store, key, group_metadata())
    write_key(group.store, f"{name}/zarr.json", array_metadata(spec))
