"""`kdcache merge`: combine parts of one store that were built on machines without a shared disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zarr

from kdcache.errors import CacheMismatchError, ConfigError, MissingFileError
from kdcache.options import MergeOptions, as_names
from kdcache.progress import logger
from kdcache.results import Result
from kdcache.store.format.layout import (
    existing_views,
    is_complete,
    mark_complete,
    missing_shards,
    open_group,
    view_arrays,
)
from kdcache.store.format.location import (
    Location,
    exists,
    list_keys,
    open_zarr_store,
    parse_location,
    read_key,
    write_key,
)
from kdcache.store.format.removal import delete_store
from kdcache.store.manifest import CONDITIONS, IDENTITY, require_equal


@dataclass(frozen=True, kw_only=True)
class MergeResult(Result):
    """The store that `merge` wrote."""

    parts: int
    views: int
    """Augmented views that have any shard."""
    complete: int
    """Complete views, the clean view among them."""
    missing_shards: int
    path: Path | str


def merge(options: MergeOptions) -> MergeResult:
    """Copy every key of the parts into a new store. A key of two parts must have equal bytes.

    Raises:
        MissingFileError: if a part does not exist.
        CacheMismatchError: if the parts differ in inputs or build conditions, or hold different
            bytes under one key.
        ConfigError: if `out` exists and `overwrite` is not set, or `out` is one of the parts.
    """
    parts = as_names(options.parts)
    out = parse_location(options.out)
    sources = [_open(parse_location(part)) for part in parts]
    first = sources[0][1]
    for part, (_, manifest) in zip(parts, sources, strict=True):
        require_equal(
            manifest,
            first,
            (*IDENTITY, *CONDITIONS),
            path=part,
            remedy=f"Parts must be built with the same options and versions as {parts[0]}",
        )
    if _resolved(out) in [_resolved(parse_location(part)) for part in parts]:
        raise ConfigError(
            parameter="out",
            value=out,
            problem=(
                "it is one of the parts, expected another path: a part that is replaced "
                "cannot be read"
            ),
        )
    if exists(out) and not options.overwrite:
        raise ConfigError(
            parameter="out", value=out, problem="it exists", remedy="Use --overwrite to replace it"
        )
    delete_store(out)
    zarr_store = open_zarr_store(out, read_only=False)
    markers = {f"views/{view}/complete" for group, _ in sources for view in existing_views(group)}
    written: set[str] = set()
    # Write a group's zarr.json before its members, and the manifest first.
    for part, (group, _) in zip(parts, sources, strict=True):
        for key in sorted(list_keys(group.store), key=lambda key: (key.count("/"), key)):
            content = read_key(group.store, key) or b""
            if key in written:
                if read_key(zarr_store, key) != content:
                    raise CacheMismatchError(
                        f"{key} of {part} differs from that of an earlier part, expected equal "
                        "bytes from equal builds. Run kdcache verify on the parts"
                    )
            elif key not in markers:
                write_key(zarr_store, key, content)
                written.add(key)
    group, _ = open_group(zarr_store, path=str(out))
    missing = {
        view: missing_shards(group, view_arrays(group, view)) for view in existing_views(group)
    }
    for view, shards in missing.items():
        if not shards and not is_complete(group, view):
            mark_complete(group, view)
    lacking = sum(map(len, missing.values()))
    if lacking:
        logger.warning("%s lacks %d shards: run build-logits --store %s", out, lacking, out)
    return MergeResult(
        parts=len(parts),
        views=max(missing, default=0),
        complete=sum(not shards for shards in missing.values()),
        missing_shards=lacking,
        path=out.absolute() if isinstance(out, Path) else out,
    )


def _resolved(location: Location) -> Location:
    return location.resolve() if isinstance(location, Path) else location.rstrip("/")


def _open(location: Location) -> tuple[zarr.Group, Any]:
    if not exists(location):
        raise MissingFileError(f"{location} does not exist, expected a logit store")
    return open_group(open_zarr_store(location, read_only=True), path=str(location))
