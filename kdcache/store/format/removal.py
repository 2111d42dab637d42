"""Delete a store, and refuse to delete anything else: `--overwrite` may name any path."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path, PurePosixPath

from kdcache.errors import ConfigError
from kdcache.store.format.layout import (
    CODEC_KEY,
    COMPLETE_MARKER,
    FEATURES,
    INITIAL_ARRAYS,
    MANIFEST_ATTRIBUTE,
    SEAL_ATTRIBUTE,
)
from kdcache.store.format.location import (
    PARTIAL_SUFFIX,
    ROOT_KEY,
    Location,
    delete_key,
    list_keys,
    open_zarr_store,
    read_key,
)

_ARRAY = r"(zarr\.json|c(/\d+)+)"
_KEY = re.compile(
    rf"zarr\.json|{re.escape(CODEC_KEY)}|({'|'.join(INITIAL_ARRAYS)}|{FEATURES})/{_ARRAY}"
    rf"|(scores|stats)/(zarr\.json|\w+/{_ARRAY})"
    rf"|views/(zarr\.json|\d+/(zarr\.json|{COMPLETE_MARKER}|rows/{_ARRAY}|mixed/\d+\.json))"
)

_SENTINEL_KEY = "sample_ids/zarr.json"
"""Key that identifies a store whose manifest is damaged."""


def delete_store(location: Location) -> None:
    """Delete a store. The manifest goes last, so a killed deletion still looks like a store.

    Raises:
        ConfigError: if the location is not a store, or holds files that are not part of a store;
            names one and deletes nothing.
    """
    zarr_store = open_zarr_store(location, read_only=False)
    keys = list_keys(zarr_store, partials=True)
    if any(not key.endswith(PARTIAL_SUFFIX) for key in keys):
        root = read_key(zarr_store, ROOT_KEY)
        if root is None or not _is_store_root(root, keys):
            raise ConfigError(
                f"{location} holds {len(keys)} files and no logit store; the first is {keys[0]}. "
                "Name another path for the store, or remove them"
            )
    if foreign := [key for key in keys if not _is_store_key(key)]:
        raise ConfigError(
            f"{location} holds {len(foreign)} files that do not belong to a logit store, the first "
            f"is {foreign[0]}. Name another path for the store, or move them elsewhere"
        )
    for key in sorted(keys, key=lambda key: (key == ROOT_KEY, key == _SENTINEL_KEY)):
        delete_key(zarr_store, key)
    if isinstance(location, Path):
        folders = {folder for key in keys for folder in PurePosixPath(key).parents if folder.name}
        for folder in sorted(folders, key=lambda folder: -len(folder.parts)):
            with suppress(OSError):  # it is not empty
                (location / folder).rmdir()


def _is_store_root(root: bytes, keys: list[str]) -> bool:
    """Return whether a zarr.json is the root of a store, damaged or not."""
    try:
        attributes = set(json.loads(root)["attributes"])
    except (KeyError, TypeError, ValueError):
        return _SENTINEL_KEY in keys
    return not attributes.isdisjoint({MANIFEST_ATTRIBUTE, SEAL_ATTRIBUTE})


def _is_store_key(key: str) -> bool:
    """Return whether a key belongs to the layout, or is a partial file of such a key."""
    if not key.endswith(PARTIAL_SUFFIX):
        return _KEY.fullmatch(key) is not None
    folder, slash, name = key.removesuffix(PARTIAL_SUFFIX).rpartition("/")
    name = name.removeprefix(".")
    return any(_KEY.fullmatch(folder + slash + of) for of in (name, name.rpartition(".")[0]))
