"""Writing a store shard by shard, so that a killed build loses one block of shards at most."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import Crc32cCodec

from kdcache.store.codec import codec_named
from kdcache.store.layout import (
    MANIFEST_ATTRIBUTE,
    chunks_present,
    is_complete,
    mark_complete,
    num_shards,
    read_manifest,
    rows_name,
    views_started,
)
from kdcache.store.manifest import StoreManifest

SCORE_TYPES: dict[str, npt.DTypeLike] = {
    "scores/cross_entropy": np.float32,
    "scores/entropy": np.float32,
    "scores/margin": np.float32,
    "scores/least_confidence": np.float32,
    "scores/el2n": np.float32,
    "stats/correct": np.bool_,
    "stats/logit_std": np.float32,
    "stats/logsumexp": np.float32,
    "stats/top1": np.int64,
}
"""Arrays of one number per sample, filled by view 0."""


class StoreWriter:
    """A store that is being built or extended. One process writes at a time.

    Attributes:
        path: where it lies.
        manifest: what it is made from.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        for leftover in path.rglob("*.partial"):  # zarr's name for a chunk that is being written
            leftover.unlink(missing_ok=True)
        self._group = zarr.open_group(path, mode="r+")
        self.manifest = read_manifest(self._group, path=str(path))

    @classmethod
    def create(
        cls,
        path: Path,
        manifest: StoreManifest,
        *,
        labels: npt.NDArray[np.int64],
        sample_ids: npt.NDArray[np.int64],
        pixel_probe: npt.NDArray[np.uint8] | None = None,
    ) -> StoreWriter:
        """Make an empty store, replacing one that is there; it appears with all its arrays.

        Args:
            path: of the store.
            manifest: what it is made from.
            labels: (N,) by sample id.
            sample_ids: (M,) sorted, rows of the views from 1.
            pixel_probe: (n, 16) digests of `kdcache.reader.probe`; without, pixels go unchecked.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.new.partial")
        shutil.rmtree(partial, ignore_errors=True)
        group = zarr.create_group(partial, attributes={MANIFEST_ATTRIBUTE: manifest.to_json()})
        probe = np.zeros((0, 16), dtype=np.uint8) if pixel_probe is None else pixel_probe
        given: dict[str, npt.NDArray[Any]] = {
            "labels": labels,
            "sample_ids": sample_ids,
            "pixel_probe": probe,
        }
        for name, values in given.items():
            group.create_array(name, data=values, compressors=[Crc32cCodec()])
        for name, dtype in SCORE_TYPES.items():
            _create_sharded(group, name, (manifest.samples,), dtype, manifest)
        shutil.rmtree(path, ignore_errors=True)
        partial.replace(path)
        return cls(path)

    def add_views(self, num_views: int) -> None:
        """Make the arrays of views 0 to `num_views`; a reader then knows that they are to come."""
        codec = codec_named(self.manifest.codec)
        width = codec.width(self.manifest.classes)
        for view in range(num_views + 1):
            if rows_name(view) in self._group:
                continue
            # Groups first, one by one: where there is an array nothing around it is missing.
            self._group.require_group("views").require_group(str(view))
            rows = self.manifest.samples if view == 0 else self._group["sample_ids"].shape[0]  # type: ignore[union-attr]
            _create_sharded(self._group, rows_name(view), (rows, width), codec.dtype, self.manifest)

    @property
    def num_views(self) -> int:
        """Augmented views that have an array, whole or not."""
        return len(views_started(self._group)) - 1

    def sample_ids(self, view: int) -> npt.NDArray[np.int64]:
        """Return the sample id of each row of a view."""
        if view == 0:
            return np.arange(self.manifest.samples, dtype=np.int64)
        return np.asarray(self._group["sample_ids"][:])  # type: ignore[index]

    def missing_shards(self, view: int) -> list[int]:
        """Return the shards of a view that are still to be written, in order."""
        names = [rows_name(view), *(SCORE_TYPES if view == 0 else ())]
        missing: set[int] = set()
        for name in names:
            array = self._group[name]
            assert isinstance(array, zarr.Array)  # noqa: S101  (the layout says so)
            missing |= set(range(num_shards(array))) - chunks_present(self._group, name)
        return sorted(missing)

    def write_shard(
        self,
        view: int,
        shard: int,
        rows: npt.NDArray[np.generic],
        per_sample: Mapping[str, npt.NDArray[np.generic]],
    ) -> None:
        """Commit one shard.

        Args:
            view: its view.
            shard: its number.
            rows: (at most shard_rows, width) encoded logits.
            per_sample: array name -> (as many,) scores and stats; empty but for view 0.
        """
        start = shard * self.manifest.shard_rows
        # A shard exists when it was written, even where all its values are zero; zarr would leave
        # such a chunk out.
        with zarr.config.set({"array.write_empty_chunks": True}):
            # The rows come last: with them the shard is there, and so is what goes with it.
            for name, values in (*per_sample.items(), (rows_name(view), rows)):
                self._group[name][start : start + len(values)] = values  # type: ignore[index]

    def finish_view(self, view: int) -> None:
        """Mark a view as whole; all its shards must be written."""
        if not is_complete(self._group, view):
            mark_complete(self._group, view)


def _create_sharded(
    group: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    dtype: npt.DTypeLike,
    manifest: StoreManifest,
) -> None:
    group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=(min(manifest.shard_rows, shape[0]), *shape[1:]),
        # Logits hardly compress; a checksum in each shard finds bit rot when it is read.
        compressors=[Crc32cCodec()],
        overwrite=True,
    )
