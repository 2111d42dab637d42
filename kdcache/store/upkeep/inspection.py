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
from kdcache.seals import seal_state
from kdcache.store.format.codec_file import has_codec, read_decision
from kdcache.store.format.layout import (
    CODEC_ATTRIBUTE,
    CODEC_KEY,
    COMPLETE_MARKER,
    FEATURES,
    INITIAL_ARRAYS,
    SEAL_ATTRIBUTE,
    STORE_ATTRIBUTE,
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
from kdcache.store.format.shards import problems_of_shards, read_whole
from kdcache.store.format.specs import (
    array_metadata,
    array_spec,
    codec_identity,
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
        elif seal_state(content) != "whole":
            yield Damage(key, "differs from its seal")
    for name in _arrays(keys):
        key = f"{name}/zarr.json"
        if key in structure:
            continue
        content = read_key(group.store, key) or b""
        metadata = _parse_metadata(content)
        if metadata is None or seal_state(content) != "whole":
            yield Damage(key, "is missing or not a valid zarr.json")
        elif metadata["attributes"].get(STORE_ATTRIBUTE) != manifest.id_of(name):
            yield Damage(key, "belongs to another store")
    for key in keys:
        if key.endswith(".json") and "/mixed/" in key:
            content = read_key(group.store, key) or b""
            if _json(content) is None or seal_state(content) != "whole":
                yield Damage(key, "differs from its seal")
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
    # The file may be whole, but of another store.
    recorded = _recorded_codecs(group, keys)
    if recorded and codec_identity(group, manifest, 1) not in recorded:
        yield Damage(CODEC_KEY, "is not the file that the views were encoded with")


def _recorded_codecs(group: zarr.Group, keys: list[str]) -> set[object]:
    """Return the codecs that the augmented views record."""
    names = (f"{rows_name(view)}/zarr.json" for view in expected_views(keys) if view)
    metadata = (_parse_metadata(read_key(group.store, name) or b"") for name in names)
    return {array["attributes"].get(CODEC_ATTRIBUTE) for array in metadata if array is not None}


def _damaged_shards(
    group: zarr.Group, name: str, advance: Callable[[int], Any]
) -> Iterator[Damage]:
    array = get_array(group, name)
    shards = range(num_shards(array))
    present = existing_shards(group, name)
    advance(1)
    if _must_be_complete(group, name):
        for shard in sorted(set(shards) - present):
            yield Damage(shard_key(array, shard), "is missing")
    for shard, problem in problems_of_shards(group, name, sorted(present & set(shards))):
        advance(1)
        if problem:
            yield Damage(shard_key(array, shard), problem)


def _must_be_complete(group: zarr.Group, name: str) -> bool:
    if name in INITIAL_ARRAYS:
        return True
    view = int(name.split("/")[1]) if name.startswith("views/") else 0
    return is_complete(group, view)


def _parse_metadata(content: bytes) -> dict[str, Any] | None:
    """Parse a zarr.json of any version of zarr into a comparable form; None if it is invalid.

    The seal is left out: it covers how a version of zarr writes the same content.
    """
    try:
        given = json.loads(content)
        del given["attributes"][SEAL_ATTRIBUTE]
        if given["node_type"] == "array":
            return ArrayV3Metadata.from_dict(given).to_dict()
        return GroupMetadata.from_dict(given).to_dict()
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _json(content: bytes) -> object:
    try:
        return json.loads(content)
    except ValueError:
        return None
