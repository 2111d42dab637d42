"""Change a finished store as if it had been built from something else, with every seal right."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import zarr

from kdcache.seals import BLANK, seal
from kdcache.store.format.layout import existing_shards, get_array, open_group
from kdcache.store.format.location import open_zarr_store
from kdcache.store.format.shards import write_shard
from kdcache.store.format.specs import root_metadata


def change_manifest(path: Path, **changes: object) -> None:
    """Let a store, its arrays and its shards say that they were made from something else."""
    group, manifest = open_group(open_zarr_store(path, read_only=False), path=str(path))
    changed = replace(manifest, **changes)
    (path / "zarr.json").write_bytes(root_metadata(changed))
    for file in path.rglob("*/zarr.json"):
        about = json.loads(file.read_text())
        if about["node_type"] == "group":
            continue
        name = str(file.parent.relative_to(path))
        array, shards = get_array(group, name), existing_shards(group, name)
        rows = {shard: array[shard * array.chunks[0] :][: array.chunks[0]] for shard in shards}
        about["attributes"] |= {"kdcache_store": changed.id_of(name), "kdcache_seal": BLANK}
        file.write_bytes(seal((json.dumps(about, indent=2) + "\n").encode()))
        for shard, values in rows.items():
            write_shard(group, name, shard, values)


def change_values(path: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace the values of an array of a store."""
    group, _ = open_group(open_zarr_store(path, read_only=False), path=str(path))
    array = get_array(group, name)
    assert isinstance(array, zarr.Array)
    changed, size = change(array[:]), array.chunks[0]
    for shard in existing_shards(group, name):
        write_shard(group, name, shard, changed[shard * size : (shard + 1) * size])
