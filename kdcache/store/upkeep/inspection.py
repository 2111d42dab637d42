"""Read every byte of a store, and name the damaged keys."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import zarr
from zarr.core.group import GroupMetadata
from zarr.core.metadata import ArrayV3Metadata

from kdcache.errors import CacheCorruptError, shell_line
from kdcache.progress import progress_bar
from kdcache.store.format.codec_file import CODECS_WITHOUT_SETTINGS, has_codec, read_decision
from kdcache.store.format.layout import (
    CODEC_KEY,
    COMPLETE_MARKER,
    FEATURES,
    INITIAL_ARRAYS,
    existing_shards,
    expected_views,
    get_array,
    is_complete,
    num_shards,
    per_sample_in,
    rows_name,
    shard_key,
)
from kdcache.store.format.location import list_keys, read_key
from kdcache.store.format.shards import read_whole, shard_damage
from kdcache.store.format.specs import (
    CODEC_ATTRIBUTE,
    array_metadata,
    array_spec,
    codec_digest,
    group_metadata,
)
from kdcache.store.manifest import StoreManifest, digest_sample_ids


class Damage(NamedTuple):
    """A key of a store that is missing or whose bytes changed."""

    key: str
    problem: str


def find_damage(group: zarr.Group, manifest: StoreManifest) -> list[Damage]:
    """Read every key of a store; return the damaged ones, sorted by key.

    `open_group` has checked the manifest. Shards that a build has not written yet do not count.
    """
    keys = list_keys(group.store)
    damaged = [*_damaged_structure(group, manifest, keys), *_damaged_codec(group, manifest, keys)]
    unreadable = {found.key for found in damaged}
    names = _arrays(keys)
    # A zarr.json for each array, and its shards.
    files = sum(key.startswith(tuple(f"{name}/" for name in names)) for key in keys)
    with progress_bar(total=files, unit="file", description="verify store") as bar:
        for name in names:
            if f"{name}/zarr.json" not in unreadable:
                damaged += _damaged_shards(group, name, bar.update)
    if not any(found.key.startswith("sample_ids") for found in damaged):
        ids = read_whole(group, "sample_ids")
        if digest_sample_ids(ids) != manifest.rows_digest:
            damaged.append(Damage("sample_ids/c/0", "differs from the manifest's digest"))
    return sorted(damaged)


def expected_structure(
    group: zarr.Group, manifest: StoreManifest, keys: list[str]
) -> dict[str, bytes]:
    """Return the zarr.json of the groups and arrays that a store must have, by key.

    The result leaves out `pixel_probe` and `features`, whose sizes are not in the manifest, and
    views whose codec is missing or damaged.
    """
    views = expected_views(keys)
    around = ["scores", "stats", "views", *(f"views/{view}" for view in views)]
    expected = {f"{name}/zarr.json": group_metadata() for name in around}
    known = views[:1] if any(_damaged_codec(group, manifest, keys)) else views
    for name in [
        "labels",
        "sample_ids",
        *per_sample_in(keys),
        *(rows_name(view) for view in known),
    ]:
        expected[f"{name}/zarr.json"] = array_metadata(array_spec(group, manifest, name))
    return expected


def _arrays(keys: list[str]) -> list[str]:
    """Return all arrays that must exist, and the optional ones that have any key."""
    features = [FEATURES] if any(key.startswith(f"{FEATURES}/") for key in keys) else []
    return [
        *INITIAL_ARRAYS,
        *per_sample_in(keys),
        *features,
        *(rows_name(view) for view in expected_views(keys)),
    ]


def _damaged_structure(
    group: zarr.Group, manifest: StoreManifest, keys: list[str]
) -> Iterator[Damage]:
    structure = expected_structure(group, manifest, keys)
    for key, expected in structure.items():
        content = read_key(group.store, key)
        if content is None:
            yield Damage(key, "is missing")
        elif _parse_metadata(content) != _parse_metadata(expected):
            yield Damage(key, "differs from what the manifest requires")
    for name in _arrays(keys):
        key = f"{name}/zarr.json"
        if key not in structure and _parse_metadata(read_key(group.store, key) or b"") is None:
            yield Damage(key, "is missing or not a valid zarr.json")
    for key in keys:
        if key.endswith(".json") and "/mixed/" in key and _json(group, key) is None:
            yield Damage(key, "is not valid JSON")
        if key.endswith(f"/{COMPLETE_MARKER}") and read_key(group.store, key) != b"complete\n":
            yield Damage(key, "is not a valid marker")


def _damaged_codec(group: zarr.Group, manifest: StoreManifest, keys: list[str]) -> Iterator[Damage]:
    if has_codec(group, manifest):
        try:
            read_decision(group, manifest)
        except CacheCorruptError as error:
            yield Damage(CODEC_KEY, shell_line(error))
            return
    elif any(expected_views(keys)):
        yield Damage(CODEC_KEY, "is missing")
        return
    # Some bytes of an npz do not affect its content, but the views record a digest of all.
    recorded = _recorded_digests(group, keys)
    if (
        manifest.codec not in CODECS_WITHOUT_SETTINGS
        and recorded
        and codec_digest(group) not in recorded
    ):
        yield Damage(CODEC_KEY, "is not the file that the views were encoded with")


def _recorded_digests(group: zarr.Group, keys: list[str]) -> set[object]:
    """Return the digests of the codec file that the augmented views record."""
    names = (f"{rows_name(view)}/zarr.json" for view in expected_views(keys) if view)
    metadata = (_parse_metadata(read_key(group.store, name) or b"") for name in names)
    return {
        array["attributes"].get(CODEC_ATTRIBUTE) for array in metadata if isinstance(array, dict)
    }


def _damaged_shards(
    group: zarr.Group, name: str, advance: Callable[[int], Any]
) -> Iterator[Damage]:
    shards = range(num_shards(get_array(group, name)))
    present = existing_shards(group, name)
    advance(1)
    for shard in shards:
        if shard not in present:
            if _must_be_complete(group, name):
                yield Damage(shard_key(group, name, shard), "is missing")
            continue
        advance(1)
        if problem := shard_damage(group, name, shard):
            yield Damage(shard_key(group, name, shard), problem)


def _must_be_complete(group: zarr.Group, name: str) -> bool:
    if name in INITIAL_ARRAYS:
        return True
    view = int(name.split("/")[1]) if name.startswith("views/") else 0
    return is_complete(group, view)


def _parse_metadata(content: bytes) -> object:
    """Parse a zarr.json of any version of zarr into a comparable form; None if it is invalid."""
    try:
        given = json.loads(content)
        if given["node_type"] == "array":
            return ArrayV3Metadata.from_dict(given).to_dict()
        return GroupMetadata.from_dict(given).to_dict()
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _json(group: zarr.Group, key: str) -> object:
    try:
        return json.loads(read_key(group.store, key) or b"")
    except ValueError:
        return None
