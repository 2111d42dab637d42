"""Write a store shard by shard, so that a killed build loses at most one block of shards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdcache.files import sweep_partials
from kdcache.store.codecs.codec import Codec
from kdcache.store.format.codec_file import codec_of
from kdcache.store.format.layout import (
    FEATURES,
    INITIAL_ARRAYS,
    PER_SAMPLE_ARRAYS,
    STORE_ATTRIBUTE,
    existing_views,
    get_array,
    has_array,
    is_complete,
    mark_complete,
    missing_shards,
    mixed_key,
    open_group,
    per_sample_arrays,
    record_conditions,
    rows_name,
    shard_key,
    view_arrays,
)
from kdcache.store.format.location import (
    PARTIAL_SUFFIX,
    ROOT_KEY,
    Location,
    delete_key,
    has_key,
    open_zarr_store,
    parse_location,
    write_key,
)
from kdcache.store.format.removal import delete_store
from kdcache.store.format.shards import read_whole, write_shard
from kdcache.store.format.specs import ArraySpec, array_spec, create_array, root_metadata
from kdcache.store.manifest import StoreManifest


class StoreWriter:
    """Write to a store that is being built or extended.

    Args:
        path: location of the store.
        exclusive: True if no other process writes to the store: all partial files are deleted.
            Otherwise only those of dead processes on this machine are deleted.

    Attributes:
        path: location of the store.
        manifest: its manifest.
        group: its writable Zarr group.
    """

    def __init__(self, path: Location, *, exclusive: bool = True) -> None:
        self.path = parse_location(path)
        self._codec: Codec | None = None  # codec of the augmented views, once it is read
        if isinstance(self.path, Path) and exclusive:
            for leftover in self.path.rglob(f"*{PARTIAL_SUFFIX}"):
                leftover.unlink(missing_ok=True)
        elif isinstance(self.path, Path):
            sweep_partials(self.path, recursive=True)
        self.group, self.manifest = open_group(
            open_zarr_store(self.path, read_only=False), path=str(self.path)
        )

    @classmethod
    def create(
        cls,
        path: Location,
        manifest: StoreManifest,
        *,
        labels: npt.NDArray[np.int64],
        sample_ids: npt.NDArray[np.int64],
        pixel_probe: npt.NDArray[np.uint8] | None = None,
    ) -> StoreWriter:
        """Create an empty store and replace an existing one. The manifest is written first.

        Args:
            path: location of the store.
            manifest: its manifest.
            labels: (N,) by sample id.
            sample_ids: (M,) sorted sample ids, the rows of the augmented views.
            pixel_probe: (n, 16) digests of `kdcache.reader.probe`; without them, a later build does
                not check the pixels.
        """
        location = parse_location(path)
        zarr_store = open_zarr_store(location, read_only=False)
        delete_store(location)
        write_key(zarr_store, ROOT_KEY, root_metadata(manifest))
        writer = cls(location)
        writer.write_initial_arrays(labels=labels, sample_ids=sample_ids, pixel_probe=pixel_probe)
        return writer

    def write_initial_arrays(
        self,
        *,
        labels: npt.NDArray[np.int64],
        sample_ids: npt.NDArray[np.int64],
        pixel_probe: npt.NDArray[np.uint8] | None = None,
    ) -> None:
        """Write the missing arrays that precede the first shard; see `create`."""
        probe = np.zeros((0, 16), dtype=np.uint8) if pixel_probe is None else pixel_probe
        given: dict[str, npt.NDArray[Any]] = dict(
            zip(INITIAL_ARRAYS, (labels, sample_ids, probe), strict=True)
        )
        for name, values in given.items():
            if has_array(self.group, name) and not missing_shards(self.group, [name]):
                continue
            attributes = {STORE_ATTRIBUTE: self.manifest.id_of(name)}
            spec = ArraySpec(values.shape, values.dtype, len(values), attributes)
            create_array(self.group, name, spec)
            if len(values):
                write_shard(self.group, name, 0, values)
        # Once view 0 has rows, a score that is new in the registry would have no numbers.
        is_new = not has_array(self.group, rows_name(0))
        for name in PER_SAMPLE_ARRAYS if is_new else per_sample_arrays(self.group):
            self._create(name)

    def add_features(self, width: int) -> None:
        """Create the array of (N, width) float16 features if it does not exist."""
        if not has_array(self.group, FEATURES):
            shape = (self.manifest.samples, width)
            attributes = {STORE_ATTRIBUTE: self.manifest.id_of(FEATURES)}
            spec = ArraySpec(shape, np.float16, self.manifest.shard_rows, attributes)
            create_array(self.group, FEATURES, spec)

    def add_views(self, num_views: int) -> None:
        """Create the arrays of views 0 to `num_views`; a reader then expects all of them."""
        for view in range(num_views + 1):
            self._create(rows_name(view))

    def _create(self, name: str) -> None:
        if not has_array(self.group, name):
            create_array(self.group, name, array_spec(self.group, self.manifest, name))

    def codec(self, view: int) -> Codec:
        """Return the codec of a view.

        Raises:
            CacheIncompleteError: if the codec of an augmented view is not decided yet.
        """
        if view == 0:
            return codec_of(self.group, self.manifest, 0)
        if self._codec is None:
            self._codec = codec_of(self.group, self.manifest, view)
        return self._codec

    @property
    def num_views(self) -> int:
        """The last view that has an array, complete or not; -1 without any."""
        return max(existing_views(self.group), default=-1)

    def sample_ids(self, view: int) -> npt.NDArray[np.int64]:
        """Return the sample ids of a view's rows, (N,) or (M,) int64."""
        if view == 0:
            return np.arange(self.manifest.samples, dtype=np.int64)
        return read_whole(self.group, "sample_ids")

    def missing_shards(self, view: int) -> list[int]:
        """Return the indices of the missing shards of a view, in order."""
        if not has_array(self.group, rows_name(view)):
            rows = self.manifest.rows if view else self.manifest.samples
            return list(range(-(-rows // self.manifest.shard_rows)))
        return missing_shards(self.group, view_arrays(self.group, view))

    def write_shard(
        self,
        view: int,
        shard: int,
        rows: npt.NDArray[np.generic],
        per_sample: Mapping[str, npt.NDArray[np.generic]],
        *,
        conditions: Mapping[str, Any] | None = None,
    ) -> None:
        """Commit one shard.

        Args:
            view: view of the shard.
            shard: index of the shard.
            rows: (n, width) encoded logits, n at most `shard_rows`.
            per_sample: array name -> (n, ...) scores, statistics and features; empty for an
                augmented view.
            conditions: build conditions of the shard, if they differ from the manifest's.
        """
        if conditions is not None:
            record_conditions(self.group.store, view, shard, conditions)
        elif has_key(self.group.store, mixed_key(view, shard)):
            # The rows are built again under the manifest's conditions: drop the record.
            delete_key(self.group.store, shard_key(get_array(self.group, rows_name(view)), shard))
            delete_key(self.group.store, mixed_key(view, shard))
        # Write the rows last: their existence commits the shard and its per-sample values.
        for name, values in (*per_sample.items(), (rows_name(view), rows)):
            write_shard(self.group, name, shard, values)

    def finish_view(self, view: int) -> None:
        """Mark a view as complete; all its shards must exist."""
        if not is_complete(self.group, view):
            mark_complete(self.group, view)
