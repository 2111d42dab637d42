"""Define the layout of a store, and find which shards of a view exist.

NAME.zarr/
  zarr.json                    group; the manifest is its attribute `kdcache`
  labels                       (N,) int64
  sample_ids                   (M,) int64, rows of the augmented views: all N, or a subset, sorted
  pixel_probe                  (n, 16) uint8, digests of a few views' pixels
  codec.npz                    codec of the augmented views: settings, arrays, measurements
  scores/NAME                  (N,) float32, higher = harder; the scores registered at build time
  stats/NAME                   (N,)
  features                     (N, F) float16 of the clean view, optional
  views/V/rows                 (N or M, width) encoded logits, one file per shard
  views/V/mixed/S.json         build conditions of shard S, if they differ from the manifest's
  views/V/complete             marker: every shard of the view exists

A shard is a block of rows of one array, in one file that says where it belongs
(`kdcache.store.format.shard_file`). It is committed when its key exists. Each zarr.json, each
codec.npz and each record of build conditions has a seal (`kdcache.seals`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.store import Store

from kdcache.errors import CacheCorruptError, CacheMismatchError
from kdcache.files import parse_json
from kdcache.scores.registry import SCORES
from kdcache.seals import require_whole, seal_state, sealed_json
from kdcache.store.format.location import (
    ROOT_KEY,
    display_name,
    has_key,
    list_keys,
    read_key,
    write_key,
)
from kdcache.store.manifest import FORMAT_VERSION, StoreManifest, build_again

Array: TypeAlias = "zarr.Array[Any]"

MANIFEST_ATTRIBUTE = "kdcache"
SEAL_ATTRIBUTE = "kdcache_seal"
STORE_ATTRIBUTE = "kdcache_store"
"""Attribute of an array: the identity of the values in its shards; see `StoreManifest.id_of`."""
CODEC_ATTRIBUTE = "kdcache_codec"
"""Attribute of a view's rows: the codec that encoded them."""

CODEC_KEY = "codec.npz"
COMPLETE_MARKER = "complete"

INITIAL_ARRAYS = ("labels", "sample_ids", "pixel_probe")
"""Arrays that are written before the first shard."""

PER_SAMPLE_ARRAYS: dict[str, npt.DTypeLike] = {
    **{f"scores/{name}": np.float32 for name in SCORES},
    "stats/correct": np.bool_,
    "stats/logit_std": np.float32,
    "stats/logsumexp": np.float32,
    "stats/top1": np.int64,
}
"""Arrays of one number per sample that a new store has, filled with view 0."""

ADDED_LATER = frozenset(
    name
    for name in PER_SAMPLE_ARRAYS
    if name.startswith("scores/")
    and name.removeprefix("scores/")
    not in {"cross_entropy", "entropy", "margin", "least_confidence", "el2n"}
)
"""Arrays that a complete store of this format version may lack: scores that were registered after
the version was fixed."""

FEATURES = "features"


def rows_name(view: int) -> str:
    """Return the name of the array of a view's rows."""
    return f"views/{view}/rows"


def complete_key(view: int) -> str:
    """Return the key of a view's marker."""
    return f"views/{view}/{COMPLETE_MARKER}"


def mixed_key(view: int, shard: int) -> str:
    """Return the key of a shard's build conditions, if they differ from the manifest's."""
    return f"views/{view}/mixed/{shard}.json"


def record_conditions(
    zarr_store: Store, view: int, shard: int, conditions: Mapping[str, Any]
) -> None:
    """Record the build conditions of a shard that differ from the manifest's."""
    write_key(zarr_store, mixed_key(view, shard), sealed_json(dict(sorted(conditions.items()))))


def shard_key(array: Array, shard: int) -> str:
    """Return the key of one shard of an array."""
    return f"{array.path}/c/{shard}" + "/0" * (array.ndim - 1)


def get_array(group: zarr.Group, name: str) -> Array:
    """Return an array of the layout.

    Raises:
        CacheCorruptError: if it is missing or damaged.
    """
    try:
        array = group[name]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CacheCorruptError(
            f"{name} of {display_name(group.store)} is missing or its zarr.json is damaged: "
            f"{error}. Run kdcache verify --repair"
        ) from error
    assert isinstance(array, zarr.Array)  # noqa: S101  (the layout names only arrays)
    return array


def has_array(group: zarr.Group, name: str) -> bool:
    """Return whether an array exists, damaged or not."""
    return has_key(group.store, f"{name}/zarr.json")


def per_sample_arrays(group: zarr.Group) -> list[str]:
    """Return the arrays of `PER_SAMPLE_ARRAYS` that a store must have; see `per_sample_in`."""
    later = [key for name in sorted(ADDED_LATER) for key in list_keys(group.store, f"{name}/")]
    return per_sample_in(later)


def per_sample_in(keys: Iterable[str]) -> list[str]:
    """Return the arrays of `PER_SAMPLE_ARRAYS` that a store with these keys must have.

    An array of `ADDED_LATER` must be complete if any of its keys exists.
    """
    found = {key.rpartition("/zarr.json")[0] or key.partition("/c/")[0] for key in keys}
    return [name for name in PER_SAMPLE_ARRAYS if name not in ADDED_LATER or name in found]


def clean_arrays(group: zarr.Group) -> list[str]:
    """Return the arrays that view 0 fills besides its rows."""
    return [*per_sample_arrays(group), *([FEATURES] if has_array(group, FEATURES) else [])]


def view_arrays(group: zarr.Group, view: int) -> list[str]:
    """Return every array that a view fills, its rows last."""
    return [*(clean_arrays(group) if view == 0 else []), rows_name(view)]


def existing_shards(group: zarr.Group, array_name: str) -> set[int]:
    """Return the indices of the shards of an array that exist."""
    prefix = f"{array_name}/c/"
    split_keys = (key.removeprefix(prefix).split("/") for key in list_keys(group.store, prefix))
    return {int(parts[0]) for parts in split_keys if all(part.isdigit() for part in parts)}


def num_shards(array: Array) -> int:
    """Return the number of shards of a complete array."""
    return -(-array.shape[0] // array.chunks[0])


def missing_shards(group: zarr.Group, names: list[str]) -> list[int]:
    """Return the indices of the shards that are missing in at least one array, in order."""
    missing: set[int] = set()
    for name in names:
        missing |= set(range(num_shards(get_array(group, name)))) - existing_shards(group, name)
    return sorted(missing)


def is_complete(group: zarr.Group, view: int) -> bool:
    """Return whether a view's marker exists."""
    return has_key(group.store, complete_key(view))


def mark_complete(group: zarr.Group, view: int) -> None:
    """Write a view's marker; all its shards must exist."""
    write_key(group.store, complete_key(view), b"complete\n")


def existing_views(group: zarr.Group) -> list[int]:
    """Return the views that have an array, in order."""
    keys = (key.split("/") for key in list_keys(group.store, "views/"))
    return sorted(
        int(key[1]) for key in keys if key[2:] == ["rows", "zarr.json"] and key[1].isdigit()
    )


def expected_views(keys: list[str]) -> list[int]:
    """Return the views that a store with these keys must have, in order.

    They are 0 to the last view with any key. A view with only the zarr.json of its group does not
    count: a build has just begun it.
    """
    parts = (key.split("/") for key in keys if key.startswith("views/"))
    begun = {int(part[1]) for part in parts if part[1].isdigit() and part[2:] != ["zarr.json"]}
    return list(range(max(begun, default=-1) + 1))


def open_group(zarr_store: Store, *, path: str) -> tuple[zarr.Group, StoreManifest]:
    """Open a store's group and its manifest.

    Raises:
        CacheCorruptError: if the group is not a store of kdcache, or its manifest is damaged.
        CacheMismatchError: if an earlier version of kdcache wrote it.
    """
    root = read_key(zarr_store, ROOT_KEY)
    name = f"{path}/{ROOT_KEY}"
    remedy = (
        f"Copy {ROOT_KEY} from another copy of the store, or build it again with "
        "kdcache build-logits --overwrite"
    )
    if root is None:
        raise CacheCorruptError(
            f"{path} is not a Zarr group, expected a logit store: {ROOT_KEY} is missing. {remedy}"
        )
    try:
        attributes = parse_json(root, name).get("attributes", {})
    except CacheCorruptError as error:
        raise CacheCorruptError(f"{name} is damaged: {error.text}. {remedy}") from error
    content: Any = attributes.get(MANIFEST_ATTRIBUTE) if isinstance(attributes, dict) else None
    state = seal_state(root)
    if not isinstance(content, dict) and state == "absent":
        raise CacheCorruptError(
            f"{path} has no manifest, expected a store of kdcache build-logits. {remedy}"
        )
    if state == "absent" and content.get("format_version") != FORMAT_VERSION:
        num_views = max(expected_views(list_keys(zarr_store, "views/")), default=0)
        raise CacheMismatchError(
            f"format_version of {path} is {content.get('format_version')!r}, expected "
            f"{FORMAT_VERSION}. {build_again(path, content, num_views=num_views)}"
        )
    require_whole(state, name, remedy)
    manifest = StoreManifest.from_json(content, path=path)
    group = zarr.open_group(zarr_store, mode="r" if zarr_store.read_only else "r+")
    return group, manifest
