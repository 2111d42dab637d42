"""Reading a store: labels, scores, and logits by sample id and view. numpy alone, no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from kdcache.errors import CacheCorruptError, CacheIncompleteError, CacheMismatchError
from kdcache.store.codec import codec_named
from kdcache.store.layout import (
    chunks_present,
    is_complete,
    num_shards,
    read_manifest,
    rows_name,
    views_started,
)
from kdcache.store.manifest import StoreManifest


class ArrayMapping(Mapping[str, npt.NDArray[Any]]):
    """The arrays of one group, read when they are asked for."""

    def __init__(self, group: zarr.Group, path: Path) -> None:
        self._group = group
        self._path = path

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """Return one array, whole."""
        if name not in self._group:
            raise KeyError(f"{name!r}, expected one of {', '.join(self)}")
        return _read_whole(self._group, name, self._path)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, sorted."""
        return iter(sorted(self._group.array_keys()))

    def __len__(self) -> int:
        """Return the number of arrays."""
        return sum(1 for _ in self)


class LogitStore:
    """A finished store. Open it with `LogitStore.open`.

    Attributes:
        path: where it lies.
        manifest: what it was made from.
        labels: (N,) int64 by sample id.
        sample_ids: (M,) int64, sorted: the rows of the views from 1.
        pixel_probe: (n, 16) digests of `kdcache.reader.probe`, empty where it was not taken.
        num_views: V, the augmented views besides view 0.
        scores: name -> (N,) float32 by sample id, higher = harder.
        stats: name -> (N,) by sample id.
    """

    def __init__(self, path: Path, group: zarr.Group, manifest: StoreManifest) -> None:
        self.path = path
        self.manifest = manifest
        self.codec = codec_named(manifest.codec)
        self._group = group
        self.labels: npt.NDArray[np.int64] = _read_whole(group, "labels", path)
        self.sample_ids: npt.NDArray[np.int64] = _read_whole(group, "sample_ids", path)
        self.pixel_probe: npt.NDArray[np.uint8] = _read_whole(group, "pixel_probe", path)
        self.num_views = len(views_started(group)) - 1
        self.scores: Mapping[str, npt.NDArray[Any]] = ArrayMapping(
            group["scores"],  # type: ignore[arg-type]
            path / "scores",
        )
        self.stats: Mapping[str, npt.NDArray[Any]] = ArrayMapping(
            group["stats"],  # type: ignore[arg-type]
            path / "stats",
        )

    @classmethod
    def open(cls, path: Path | str) -> LogitStore:
        """Open a finished store and check that no shard is missing.

        Raises:
            FileNotFoundError: if there is none.
            CacheIncompleteError: if its build has not finished.
            CacheCorruptError: if a shard that was there is missing, or labels are damaged.
            CacheMismatchError: if another version of kdcache wrote it.
        """
        path = Path(path)
        if not path.is_dir():
            raise FileNotFoundError(
                f"{path} does not exist, expected a logit store. Run: kdcache build-logits"
            )
        try:
            group = zarr.open_group(path, mode="r")
        except FileNotFoundError as error:
            raise CacheCorruptError(f"{path} is no Zarr group, expected a logit store") from error
        manifest = read_manifest(group, path=str(path))
        _require_whole(group, path)
        return cls(path, group, manifest)

    def rows(self, sample_ids: npt.ArrayLike, view: int) -> npt.NDArray[np.generic]:
        """Return encoded rows.

        Args:
            sample_ids: (n,) in any order.
            view: in [0, V].

        Returns:
            (n, width) of the codec's dtype.

        Raises:
            CacheMismatchError: if the store has no such row.
            CacheCorruptError: if a shard's bytes differ from their checksum.
        """
        positions = self._positions(np.asarray(sample_ids), view)
        array = self._group[rows_name(view)]
        assert isinstance(array, zarr.Array)  # noqa: S101  (the layout says so)
        with _damage_named(self.path / rows_name(view)):
            return np.asarray(array.oindex[positions])

    def logits(self, sample_ids: npt.ArrayLike, view: int) -> npt.NDArray[np.float32]:
        """Return decoded logits, (n, C) float32, up to a constant in each row.

        Args:
            sample_ids: (n,) in any order.
            view: in [0, V].

        Raises:
            CacheMismatchError: if the store has no such row.
            CacheCorruptError: if a shard's bytes differ from their checksum.
        """
        decoded: npt.NDArray[np.float32] = self.codec.decode(self.rows(sample_ids, view))
        return decoded

    def _positions(self, ids: npt.NDArray[np.generic], view: int) -> npt.NDArray[np.int64]:
        if not 0 <= view <= self.num_views:
            raise CacheMismatchError(
                f"view is {view}, expected one of the store's views 0 to {self.num_views}. "
                f"For more, run kdcache build-logits with --views {view}"
            )
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(
                f"sample_ids are {ids.dtype} of shape {ids.shape}, expected integers in one row"
            )
        rows = np.arange(self.manifest.samples) if view == 0 else self.sample_ids
        found = np.minimum(np.searchsorted(rows, ids), len(rows) - 1)
        missing = ids[rows[found] != ids]
        if len(missing):
            raise CacheMismatchError(
                f"{self.path} has no row of view {view} for {len(missing):,} of {len(ids):,} "
                f"samples, the first is sample {missing[0]}; expected ids among its "
                f"{len(rows):,} rows"
            )
        return found.astype(np.int64)


def _read_whole(group: zarr.Group, name: str, path: Path) -> npt.NDArray[Any]:
    with _damage_named(path / name):
        return np.asarray(group[name][:])  # type: ignore[index]


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn zarr's complaint about a checksum into one that names the array."""
    try:
        yield
    except ValueError as error:
        if "checksum" not in str(error):
            raise
        raise CacheCorruptError(
            f"{path} holds bytes that differ from their checksum: {error}. "
            "Run kdcache build-logits with --overwrite"
        ) from error


def _require_whole(group: zarr.Group, path: Path) -> None:
    views = views_started(group)
    unfinished = [view for view in views if not is_complete(group, view)]
    if unfinished or not views:
        raise CacheIncompleteError(
            f"{path} holds {len(views) - len(unfinished)} of {len(views)} views, expected all. "
            "Run kdcache build-logits again with the same arguments; it continues"
        )
    written_first = ["labels", "sample_ids", "pixel_probe"]
    names = [*written_first, *(rows_name(view) for view in views)]
    for folder in ("scores", "stats"):
        names += [f"{folder}/{name}" for name in group[folder].array_keys()]  # type: ignore[union-attr]
    for name in names:
        array = group[name]
        assert isinstance(array, zarr.Array)  # noqa: S101
        missing = set(range(num_shards(array))) - chunks_present(group, name)
        if missing:
            remedy = (
                "with --overwrite"
                if name in written_first
                else "again with the same arguments; it fills the gap"
            )
            raise CacheCorruptError(
                f"{path}/{name} lacks shard {min(missing)} ({len(missing)} of "
                f"{num_shards(array)} shards), expected all. Run kdcache build-logits {remedy}"
            )
