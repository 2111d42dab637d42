"""Making again what is damaged in a store, and nothing else."""

from __future__ import annotations

import zarr

from kdcache.errors import CacheCorruptError
from kdcache.store.format.codec_file import CODECS_WITHOUT_SETTINGS
from kdcache.store.format.layout import CODEC_KEY, COMPLETE_MARKER, INITIAL_ARRAYS, mixed_key
from kdcache.store.format.location import delete_key, display_name, list_keys, write_key
from kdcache.store.manifest import StoreManifest
from kdcache.store.upkeep.inspection import Damage, expected_structure


def needs_teacher(group: zarr.Group, manifest: StoreManifest, damaged: list[Damage]) -> bool:
    """Return whether anything damaged holds, or decides, what the teacher answered."""
    structure = expected_structure(group, manifest, list_keys(group.store))
    return any(
        key not in structure
        and not key.startswith(tuple(f"{name}/" for name in INITIAL_ARRAYS))
        and not key.endswith(f"/{COMPLETE_MARKER}")
        for key, _ in damaged
    )


def remove_damaged(group: zarr.Group, manifest: StoreManifest, damaged: list[Damage]) -> None:
    """Take out what a build then makes again; write again what the manifest alone says.

    Raises:
        CacheCorruptError: if the sample ids of a subset are damaged, which nothing else in the
            store says; names the remedy.
    """
    place = group.store
    structure = expected_structure(group, manifest, list_keys(place))
    for key, what in damaged:
        if key.startswith("sample_ids/c/") and manifest.rows < manifest.samples:
            raise CacheCorruptError(
                f"{key} of {display_name(place)} {what}: the list of samples that the "
                "views cover is lost. Run kdcache build-logits with the --subset that the store "
                "was built for; it fills the gap"
            )
        if key in structure:
            write_key(place, key, structure[key])
        elif "/mixed/" in key:
            # Under which conditions the shard was built is lost: it is built again.
            view, shard = int(key.split("/")[1]), int(key.split("/")[3].removesuffix(".json"))
            delete_key(place, mixed_key(view, shard))
            delete_key(place, f"views/{view}/rows/c/{shard}/0")
        elif key.endswith("/zarr.json"):
            # What its shards hold is not known any more.
            for part in list_keys(place, key.removesuffix("zarr.json")):
                delete_key(place, part)
        elif key == CODEC_KEY and manifest.codec in CODECS_WITHOUT_SETTINGS:
            continue
        else:
            delete_key(place, key)
