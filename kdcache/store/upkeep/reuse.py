"""Reuse the clean view of another store of the same teacher, without a forward."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from kdcache.errors import KDCacheError
from kdcache.files import make_directory, replace_atomically, sync_directory
from kdcache.identity import differences
from kdcache.progress import logger
from kdcache.store.format.layout import (
    complete_key,
    get_array,
    num_shards,
    per_sample_arrays,
    record_conditions,
    rows_name,
)
from kdcache.store.format.location import delete_key, list_keys, read_key, write_key
from kdcache.store.logit_store import LogitStore
from kdcache.store.manifest import CLEAN_IDENTITY, StoreManifest, build_conditions
from kdcache.store.writer import StoreWriter

CLEAN_KEYS = ("scores/", "stats/", "features/", "views/0/")


def find_clean_view(folder: Path, wanted: StoreManifest) -> LogitStore | None:
    """Return the first finished store in a folder, by name, whose clean view fits; or None."""
    expected = {name: getattr(wanted, name) for name in CLEAN_IDENTITY}
    for path in sorted(folder.glob("*.zarr")):
        try:
            store = LogitStore.open(path)
        except KDCacheError as error:
            logger.info("the clean view of %s cannot be reused: %s", path, error)
            continue
        same_codec = store.manifest.clean_codec == wanted.clean_codec
        if same_codec and not differences(store.manifest.to_json(), expected):
            return store
    return None


def copy_clean_view(source: LogitStore, target: StoreWriter) -> None:
    """Copy view 0, scores, statistics and features into another store; local files are linked.

    Hard links are safe because files of a store are never changed in place.
    """
    zarr_store, into = source.group.store, target.group.store
    keys = [key for prefix in CLEAN_KEYS for key in list_keys(zarr_store, prefix)]
    if differ := differences(source.manifest.to_json(), build_conditions(target.manifest)):
        logger.info("view 0 of %s was built under other conditions: %s", source.path, differ)
        for shard in range(num_shards(get_array(source.group, rows_name(0)))):
            record_conditions(into, 0, shard, build_conditions(source.manifest))
    # Remove the scores that the source lacks before the view is complete.
    for name in set(per_sample_arrays(target.group)) - set(per_sample_arrays(source.group)):
        delete_key(into, f"{name}/zarr.json")
    # Write the marker last, as a build does.
    for key in sorted(keys, key=lambda key: key == complete_key(0)):
        if isinstance(source.path, Path) and isinstance(target.path, Path):
            _link(source.path / key, target.path / key)
        else:
            write_key(into, key, read_key(zarr_store, key) or b"")
    logger.info(
        "view 0, scores and statistics are copied from %s: no forward is repeated", source.path
    )


def _link(source: Path, target: Path) -> None:
    make_directory(target.parent)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        with replace_atomically(target) as partial:
            shutil.copyfile(source, partial)
    sync_directory(target.parent)
