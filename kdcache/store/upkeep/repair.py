"""Prepare the repair of a store: remove or rewrite the damaged keys only."""

from __future__ import annotations

import zarr

from kdcache.errors import CacheCorruptError
from kdcache.store.format.codec_file import CODECS_WITHOUT_SETTINGS
from kdcache.store.format.layout import CODEC_KEY, COMPLETE_MARKER, INITIAL_ARRAYS, mixed_key
from kdcache.store.format.location import delete_key, display_name, list_keys, write_key
from kdcache.store.manifest import StoreManifest
from kdcache.store.upkeep.inspection import Damage, expected_structure


def needs_teacher(group: zarr.Group, manifest: StoreManifest, damaged: list[Damage]) -> bool:
    """Return whether a damaged key holds teacher outputs, or the codec derived from them."""
    structure = expected_structure(group, manifest, list_keys(group.store))
    return any(
        key not in structure
        and not key.startswith(tuple(f"{name}/" for name in INITIAL_ARRAYS))
        and not key.endswith(f"/{COMPLETE_MARKER}")
        for key, _ in damaged
    )


def remove_damaged(group: zarr.Group, manifest: StoreManifest, damaged: list[Damage]) -> None:
    """Rewrite keys that follow from the manifest; remove the others, for a build to make again.

    Raises:
        CacheCorruptError: if the sample ids of a subset are damaged: they cannot be derived from
            the store. The message names the remedy.
    """
    zarr_store = group.store
    structure = expected_structure(group, manifest, list_keys(zarr_store))
    for key, problem in damaged:
        if key.startswith("sample_ids/c/") and manifest.rows < manifest.samples:
            raise CacheCorruptError(
                f"{key} of {display_name(zarr_store)} {problem}: the list of samples that the "
                "views cover is lost. Run kdcache build-logits with the --subset that the store "
                "was built for; it fills the gap"
            )
        if key in structure:
            write_key(zarr_store, key, structure[key])
        elif "/mixed/" in key:
            # The build conditions of the shard are lost: build it again.
            view, shard = int(key.split("/")[1]), int(key.split("/")[3].removesuffix(".json"))
            delete_key(zarr_store, mixed_key(view, shard))
            delete_key(zarr_store, f"views/{view}/rows/c/{shard}/0")
        elif key.endswith("/zarr.json"):
            # The format of its shards is not known any more.
            for part in list_keys(zarr_store, key.removesuffix("zarr.json")):
                delete_key(zarr_store, part)
        elif key == CODEC_KEY and manifest.codec in CODECS_WITHOUT_SETTINGS:
            continue
        else:
            delete_key(zarr_store, key)
