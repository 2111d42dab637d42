"""Read a store: labels, scores, and logits by sample id and view. This needs numpy, not torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from kdcache.arguments import require_int
from kdcache.errors import (
    CacheCorruptError,
    CacheIncompleteError,
    CacheMismatchError,
    ConfigError,
    MissingFileError,
)
from kdcache.store.codecs.codec import Codec
from kdcache.store.codecs.fidelity import CodecFigures
from kdcache.store.format.codec_file import clean_codec, read_decision
from kdcache.store.format.layout import (
    FEATURES,
    INITIAL_ARRAYS,
    existing_views,
    expected_views,
    get_array,
    has_array,
    is_complete,
    missing_shards,
    open_group,
    per_sample_arrays,
    rows_name,
    shard_key,
    view_arrays,
)
from kdcache.store.format.location import (
    Location,
    exists,
    list_keys,
    open_zarr_store,
    parse_location,
)
from kdcache.store.format.shards import foreign_shards, read_rows, read_whole
from kdcache.store.format.specs import require_own_arrays
from kdcache.store.manifest import StoreManifest, digest_sample_ids
from kdcache.store.report import BuildReport
from kdcache.store.reshaping import reshaping_constants


class PerSampleArrays(Mapping[str, npt.NDArray[Any]]):
    """The per-sample arrays of one folder, by name. Each is read on access."""

    def __init__(self, group: zarr.Group, folder: str) -> None:
        self._group = group
        self._folder = folder
        parts = (name.split("/") for name in per_sample_arrays(group))
        self._names = sorted(name for beside, name in parts if beside == folder)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """Return one array, (N,)."""
        if name not in self._names:
            raise KeyError(f"{name!r}, expected one of {', '.join(self)}")
        return read_whole(self._group, f"{self._folder}/{name}")

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, sorted."""
        return iter(self._names)

    def __len__(self) -> int:
        """Return the number of arrays."""
        return len(self._names)


class LogitStore:
    """A finished store. Use `LogitStore.open` to open it.

    Attributes:
        path: location: a Path, or the URL of an object store.
        manifest: identity and build conditions.
        codec: codec of the augmented views; of view 0 if there are no others.
        codec_table: measurements of the candidate codecs, smallest first.
        labels: (N,) int64 by sample id.
        sample_ids: (M,) sorted int64, the rows of the augmented views.
        pixel_probe: (n, 16) digests of `kdcache.reader.probe`, (0, 16) if there is none.
        num_views: V, the number of augmented views.
        scores: name -> (N,) float32 by sample id, higher = harder.
        stats: name -> (N,) by sample id, see `kdcache.scores.predictions.STATS`.
    """

    def __init__(self, path: Location, group: zarr.Group, manifest: StoreManifest) -> None:
        self.path = path
        self.manifest = manifest
        self.group = group
        self.labels: npt.NDArray[np.int64] = read_whole(group, "labels")
        self.sample_ids: npt.NDArray[np.int64] = read_whole(group, "sample_ids")
        if digest_sample_ids(self.sample_ids) != manifest.rows_digest:
            raise CacheCorruptError(
                f"the sample ids of {path} differ from the digest in its manifest. "
                "Run kdcache verify --repair"
            )
        self.report: BuildReport | None = None
        """The figures of the call that built it; None if it was opened."""
        self.pixel_probe: npt.NDArray[np.uint8] = read_whole(group, "pixel_probe")
        self.num_views = len(existing_views(group)) - 1
        self.scores: Mapping[str, npt.NDArray[Any]] = PerSampleArrays(group, "scores")
        self.stats: Mapping[str, npt.NDArray[Any]] = PerSampleArrays(group, "stats")
        self.codec = clean_codec(manifest)
        self.codec_table: Sequence[CodecFigures] = ()
        if self.num_views:
            decision = read_decision(group, manifest)
            if decision is None:
                raise CacheCorruptError(f"{path} has views but no codec. Run kdcache verify")
            self.codec, self.codec_table = decision

    @classmethod
    def open(cls, path: Path | str) -> LogitStore:
        """Open a finished store and check that every shard is in its place.

        Args:
            path: a folder, or a URL such as s3://BUCKET/NAME.zarr.

        Raises:
            MissingFileError: if it does not exist.
            CacheIncompleteError: if its build has not finished.
            CacheCorruptError: if a shard was lost or belongs elsewhere, or labels are damaged.
            CacheMismatchError: if another version of kdcache wrote it.
        """
        location = parse_location(path)
        if isinstance(location, Path):
            location = location.absolute()  # it stays valid if the process changes its folder
        if not exists(location):
            if isinstance(location, Path) and location.is_dir():
                raise CacheCorruptError(f"{path} is not a Zarr group, expected a logit store")
            raise MissingFileError(
                f"{path} does not exist, expected a logit store. Run: kdcache build-logits"
            )
        group, manifest = open_group(open_zarr_store(location, read_only=True), path=str(path))
        return cls.from_group(location, group, manifest)

    @classmethod
    def from_group(cls, path: Location, group: zarr.Group, manifest: StoreManifest) -> LogitStore:
        """Return the finished store of an open group, and check that every shard is in its place.

        Raises:
            CacheIncompleteError: if its build has not finished.
            CacheCorruptError: if a shard was lost or belongs elsewhere, or labels are damaged.
        """
        _require_complete(group, path)
        _require_own(group, manifest, path)
        return cls(path, group, manifest)

    def __repr__(self) -> str:
        """Return the location and the numbers."""
        about = self.manifest
        return (
            f"LogitStore({str(self.path)!r}, teacher={about.teacher!r}, samples={about.samples}, "
            f"classes={about.classes}, views={self.num_views})"
        )

    def codec_of(self, view: int) -> Codec:
        """Return the codec of a view's rows."""
        return self.codec if view else clean_codec(self.manifest)

    def features(self) -> npt.NDArray[np.float16]:
        """Return the penultimate activations of the clean view, (N, F) float16.

        Raises:
            CacheMismatchError: if the store was built without them.
        """
        if not has_array(self.group, FEATURES):
            raise CacheMismatchError(
                f"{self.path} holds no features. Run kdcache build-logits with --features"
            )
        return read_whole(self.group, FEATURES)

    def reshaping_constants(self) -> npt.NDArray[np.float64]:
        """Return the constants of MDSLR's logit reshaping, (C,); see `kdcache.store.reshaping`."""
        return reshaping_constants(self.stats["logit_std"], self.labels, self.manifest.classes)

    def rows(
        self,
        sample_ids: npt.ArrayLike,
        view: int,
        *,
        out: npt.NDArray[np.generic] | None = None,
    ) -> npt.NDArray[np.generic]:
        """Return encoded rows.

        Args:
            sample_ids: (n,) in any order.
            view: in [0, V].
            out: (n, width) of the codec's dtype; the rows are written here if given.

        Returns:
            (n, width) of the codec's dtype. Each shard is read once, in any order of ids.

        Raises:
            ConfigError: if ids or view are no integers.
            CacheMismatchError: if the store has no such row.
            CacheCorruptError: if a shard's bytes differ from their checksum.
        """
        view = require_int("view", view)
        positions = self._positions(np.asarray(sample_ids), view)
        return read_rows(self.group, rows_name(view), positions, out=out)

    def logits(self, sample_ids: npt.ArrayLike, view: int) -> npt.NDArray[np.float32]:
        """Return decoded logits, (n, C) float32. A row may be shifted by a constant.

        Args:
            sample_ids: (n,) in any order.
            view: in [0, V].

        Raises:
            ConfigError: if ids or view are no integers.
            CacheMismatchError: if the store has no such row.
            CacheCorruptError: if a shard's bytes differ from their checksum.
        """
        rows = self.rows(sample_ids, view)
        decoded: npt.NDArray[np.float32] = self.codec_of(view).decode(rows)
        return decoded

    def _positions(self, ids: npt.NDArray[np.generic], view: int) -> npt.NDArray[np.int64]:
        if not 0 <= view <= self.num_views:
            raise CacheMismatchError(
                f"view is {view}, expected one of the store's views 0 to {self.num_views}. "
                f"For more, run kdcache build-logits with --views {view}"
            )
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise ConfigError(
                f"sample_ids are {ids.dtype} of shape {ids.shape}, expected (n,) integers",
                parameter="sample_ids",
                value=ids,
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


def _require_own(group: zarr.Group, manifest: StoreManifest, path: Location) -> None:
    """Check that every array and every shard belongs to this store and to its place in it."""
    views = existing_views(group)
    names = [*INITIAL_ARRAYS, *(name for view in views for name in view_arrays(group, view))]
    if len(views) > 1:
        read_decision(group, manifest)  # a damaged codec file is named before the views it encoded
    require_own_arrays(group, manifest, names, path=str(path))
    problems = list(foreign_shards(group, names))
    if problems:
        key, problem = problems[0]
        raise CacheCorruptError(
            f"{key} of {path} {problem} ({len(problems)} such shards). Run kdcache verify --repair"
        )


def _require_complete(group: zarr.Group, path: Location) -> None:
    views = existing_views(group)
    if lost := set(expected_views(list_keys(group.store, "views/"))) - set(views):
        raise CacheCorruptError(
            f"{path} lacks {rows_name(min(lost))}/zarr.json ({len(lost)} views are lost), expected "
            "every view from 0 to the last. Run kdcache verify --repair"
        )
    unfinished = [view for view in views if not is_complete(group, view)]
    if unfinished or not views:
        raise CacheIncompleteError(
            f"{path} holds {len(views) - len(unfinished)} of {len(views)} views, expected all. "
            "Run kdcache build-logits again with the same arguments; it continues"
        )
    names = [*INITIAL_ARRAYS, *(name for view in views for name in view_arrays(group, view))]
    for name in names:
        if missing := missing_shards(group, [name]):
            array = get_array(group, name)
            raise CacheCorruptError(
                f"{path} lacks {shard_key(array, missing[0])} ({len(missing)} shards of "
                f"{name} are missing), expected all. Run kdcache build-logits again with the same "
                "arguments; it fills the gap"
            )
