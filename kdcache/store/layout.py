"""Where things lie in a store, and which shards of a view exist.

NAME.zarr/
  zarr.json                    group; the manifest is its attribute `kdcache`
  labels                       (N,) int64
  sample_ids                   (M,) int64, rows of the views from 1: all N, or a subset, sorted
  pixel_probe                  (n, 16) uint8, digests of a few views' pixels
  scores/NAME                  (N,) float32, higher = harder
  stats/NAME                   (N,)
  views/V/rows                 (N or M, width) encoded logits; one chunk a shard, with its CRC-32C
  views/V/complete             appears when every shard of the view does

A chunk is a shard: a block of rows of one view, committed by the existence of its file. zarr
answers a missing chunk with fill values, so existence is always checked first.
"""

from __future__ import annotations

from typing import Any

import zarr
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from kdcache.errors import CacheCorruptError, CacheMismatchError
from kdcache.store.manifest import FORMAT_VERSION, StoreManifest

MANIFEST_ATTRIBUTE = "kdcache"


def rows_name(view: int) -> str:
    """Return the array of a view's rows."""
    return f"views/{view}/rows"


def complete_key(view: int) -> str:
    """Return the key of a view's marker."""
    return f"views/{view}/complete"


def chunks_present(group: zarr.Group, array_name: str) -> set[int]:
    """Return the numbers of an array's shards that exist."""
    prefix = f"{array_name}/c/"

    async def list_keys(store: Store) -> list[str]:
        return [key async for key in store.list_prefix(prefix)]

    keys = sync(list_keys(group.store))
    places = (key.removeprefix(prefix).split("/") for key in keys)
    # Beside whole chunks may lie the leftovers of a process that was killed while writing.
    return {int(place[0]) for place in places if all(part.isdigit() for part in place)}


def num_shards(array: zarr.Array) -> int:  # type: ignore[type-arg]
    """Return how many shards an array has when it is whole."""
    return -(-array.shape[0] // array.chunks[0])


def is_complete(group: zarr.Group, view: int) -> bool:
    """Return whether a view's marker exists."""
    return bool(sync(group.store.exists(complete_key(view))))


def mark_complete(group: zarr.Group, view: int) -> None:
    """Write a view's marker; all its shards must exist."""
    buffer = default_buffer_prototype().buffer.from_bytes(b"complete\n")
    sync(group.store.set(complete_key(view), buffer))


def views_started(group: zarr.Group) -> list[int]:
    """Return the numbers of the views that have an array, in order."""

    async def list_names(store: Store) -> list[str]:
        return [name async for name in store.list_dir("views")]

    # A process that was killed while it made an array leaves a folder that zarr does not know.
    numbers = (int(name) for name in sync(list_names(group.store)) if name.isdigit())
    return sorted(number for number in numbers if rows_name(number) in group)


def read_manifest(group: zarr.Group, *, path: str) -> StoreManifest:
    """Return the manifest of a store.

    Raises:
        CacheCorruptError: if the group is no store of kdcache.
        CacheMismatchError: if another version of kdcache wrote it.
    """
    content: Any = group.attrs.get(MANIFEST_ATTRIBUTE)
    if not isinstance(content, dict):
        raise CacheCorruptError(f"{path} has no manifest, expected a store of kdcache build-logits")
    if content.get("format_version") != FORMAT_VERSION:
        raise CacheMismatchError(
            f"format_version of {path} is {content.get('format_version')}, expected "
            f"{FORMAT_VERSION}. Build it again with kdcache build-logits --overwrite"
        )
    return StoreManifest(**content)
