"""Removing a store, and nothing that is none: `--overwrite` meets whatever lies at a path."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path, PurePosixPath

from kdcache.errors import ConfigError
from kdcache.store.format.layout import (
    CODEC_KEY,
    COMPLETE_MARKER,
    DIGEST_ATTRIBUTE,
    FEATURES,
    INITIAL_ARRAYS,
    MANIFEST_ATTRIBUTE,
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
"""By which a store is known whose manifest is damaged."""


def delete_store(location: Location) -> None:
    """Remove a store; its manifest goes last, so that a killed removal is known for what it is.

    Raises:
        ConfigError: if there is something that is no store, or lies in one and is no part of it;
            names it, and removes nothing.
    """
    place = open_zarr_store(location, read_only=False)
    keys = list_keys(place, partials=True)
    if any(not key.endswith(PARTIAL_SUFFIX) for key in keys):
        root = read_key(place, ROOT_KEY)
        if root is None or not _is_store_root(root, keys):
            raise ConfigError(
                f"{location} holds {len(keys)} files and no logit store, the first is {keys[0]}. "
                "Name another path for the store, or remove them"
            )
    if foreign := [key for key in keys if not _is_store_key(key)]:
        raise ConfigError(
            f"{location} holds {len(foreign)} files that are no part of a logit store, the first "
            f"is {foreign[0]}. Name another path for the store, or move them elsewhere"
        )
    for key in sorted(keys, key=lambda key: (key == ROOT_KEY, key == _SENTINEL_KEY)):
        delete_key(place, key)
    if isinstance(location, Path):
        folders = {folder for key in keys for folder in PurePosixPath(key).parents if folder.name}
        for folder in sorted(folders, key=lambda folder: -len(folder.parts)):
            with suppress(OSError):  # there is something in it that is no file
                (location / folder).rmdir()


def _is_store_root(root: bytes, keys: list[str]) -> bool:
    """Return whether a zarr.json is the root of a store, or was before it was damaged."""
    try:
        attributes = set(json.loads(root)["attributes"])
    except (KeyError, TypeError, ValueError):
        return _SENTINEL_KEY in keys
    return not attributes.isdisjoint({MANIFEST_ATTRIBUTE, DIGEST_ATTRIBUTE})


def _is_store_key(key: str) -> bool:
    """Return whether the layout has a key; or has the one that a killed process was writing."""
    if not key.endswith(PARTIAL_SUFFIX):
        return _KEY.fullmatch(key) is not None
    folder, slash, name = key.removesuffix(PARTIAL_SUFFIX).rpartition("/")
    name = name.removeprefix(".")
    return any(_KEY.fullmatch(folder + slash + of) for of in (name, name.rpartition(".")[0]))
