"""Derive the arrays' shapes, types and shards from the manifest and the codec.

Creating an array only writes its zarr.json. So a damaged zarr.json can be written again without
touching the shards.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import Crc32cCodec
from zarr.storage import MemoryStore

from kdcache.errors import CacheCorruptError
from kdcache.seals import BLANK, seal
from kdcache.store.format.codec_file import CODECS_WITHOUT_SETTINGS, codec_of
from kdcache.store.format.layout import (
    CODEC_ATTRIBUTE,
    CODEC_KEY,
    MANIFEST_ATTRIBUTE,
    PER_SAMPLE_ARRAYS,
    SEAL_ATTRIBUTE,
    STORE_ATTRIBUTE,
    get_array,
)
from kdcache.store.format.location import (
    ROOT_KEY,
    has_key,
    read_key,
    write_key,
)
from kdcache.store.manifest import StoreManifest


class ArraySpec(NamedTuple):
    """Shape, type and shards of an array."""

    shape: tuple[int, ...]
    dtype: npt.DTypeLike
    shard_rows: int
    attributes: Mapping[str, str]


def array_spec(group: zarr.Group, manifest: StoreManifest, name: str) -> ArraySpec:
    """Return the spec of an array of the layout.

    Raises:
        CacheIncompleteError: if the codec of a view is not decided yet.
    """
    attributes = {STORE_ATTRIBUTE: manifest.id_of(name)}
    if name in PER_SAMPLE_ARRAYS:
        return ArraySpec(
            (manifest.samples,), PER_SAMPLE_ARRAYS[name], manifest.shard_rows, attributes
        )
    if name == "labels":
        return ArraySpec((manifest.samples,), np.int64, manifest.samples, attributes)
    if name == "sample_ids":
        return ArraySpec((manifest.rows,), np.int64, manifest.rows, attributes)
    match = re.fullmatch(r"views/(\d+)/rows", name)
    assert match, name  # noqa: S101  (the layout has no other arrays)
    view = int(match[1])
    codec = codec_of(group, manifest, view)
    shape = (manifest.rows if view else manifest.samples, codec.row_width)
    attributes[CODEC_ATTRIBUTE] = codec_identity(group, manifest, view)
    return ArraySpec(shape, codec.dtype, manifest.shard_rows, attributes)


def codec_identity(group: zarr.Group, manifest: StoreManifest, view: int) -> str:
    """Return the codec of a view's rows: its name, or the sha256 of the codec file."""
    if view == 0:
        return manifest.clean_codec
    if manifest.codec in CODECS_WITHOUT_SETTINGS:
        return manifest.codec
    return hashlib.sha256(read_key(group.store, CODEC_KEY) or b"").hexdigest()


def require_own_arrays(
    group: zarr.Group, manifest: StoreManifest, names: Iterable[str], *, path: str
) -> None:
    """Check that the arrays were made for this store.

    Raises:
        CacheCorruptError: if one belongs to another store, or was encoded with another codec.
    """
    for name in names:
        attributes = get_array(group, name).attrs
        expected = manifest.id_of(name)
        if (found := attributes.get(STORE_ATTRIBUTE)) != expected:
            raise CacheCorruptError(
                f"{name} of {path} belongs to another store: its identity is {found}, expected "
                f"{expected}. Run kdcache verify --repair"
            )
        if name.startswith("views/") and not is_encoded_with(group, manifest, name):
            raise CacheCorruptError(
                f"view {_view_of(name)} of {path} was encoded with another codec than that of its "
                "codec.npz: parts of two stores were mixed. Run kdcache verify --repair"
            )


def is_encoded_with(group: zarr.Group, manifest: StoreManifest, name: str) -> bool:
    """Return whether a view's rows were encoded with the store's current codec."""
    expected = codec_identity(group, manifest, _view_of(name))
    return get_array(group, name).attrs.get(CODEC_ATTRIBUTE) == expected


def _view_of(name: str) -> int:
    return int(name.split("/")[1])


def array_metadata(spec: ArraySpec) -> bytes:
    """Return the zarr.json of an array."""
    zarr_store = MemoryStore()
    chunk = (max(1, min(spec.shard_rows, spec.shape[0])), *spec.shape[1:])
    zarr.create_group(zarr_store).create_array(
        "array",
        shape=spec.shape,
        dtype=spec.dtype,
        chunks=chunk,
        shards=chunk,
        # Logits hardly compress; a checksum in each shard finds bit rot when it is read.
        compressors=[Crc32cCodec()],
    )
    return _sealed(read_key(zarr_store, "array/zarr.json") or b"", spec.attributes)


def group_metadata() -> bytes:
    """Return the zarr.json of a group below the root."""
    return _group({})


def root_metadata(manifest: StoreManifest) -> bytes:
    """Return the zarr.json of the root, which holds the manifest."""
    return _group({MANIFEST_ATTRIBUTE: manifest.to_json()})


def _group(attributes: Mapping[str, Any]) -> bytes:
    zarr_store = MemoryStore()
    zarr.create_group(zarr_store)
    return _sealed(read_key(zarr_store, ROOT_KEY) or b"", attributes)


def _sealed(metadata: bytes, attributes: Mapping[str, Any]) -> bytes:
    """Return a zarr.json with attributes and a seal."""
    content = json.loads(metadata) | {"attributes": {**attributes, SEAL_ATTRIBUTE: BLANK}}
    return seal((json.dumps(content, indent=2) + "\n").encode())


def create_array(group: zarr.Group, name: str, spec: ArraySpec) -> None:
    """Create an array after its parent groups, so that an existing array has all of them."""
    parts = name.split("/")
    for depth in range(1, len(parts)):
        around = "/".join(parts[:depth])
        key = f"{around}/zarr.json"
        if not has_key(group.store, key):
            write_key(group.store, key, group_metadata())
    write_key(group.store, f"{name}/zarr.json", array_metadata(spec))
