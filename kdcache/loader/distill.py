"""`DistillLoader`: the kept samples, each with the teacher's answer to exactly these pixels."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kdcache.data.beton import Beton, open_beton
from kdcache.data.views import Views, default_views
from kdcache.errors import CacheMismatchError, ConfigError
from kdcache.loader.staging import Rows, RowStage
from kdcache.options import Order
from kdcache.reader.batches import PixelReader
from kdcache.reader.order import batch_bounds, epoch_order
from kdcache.selection.subset import Subset
from kdcache.store.logit_store import LogitStore


class Batch(NamedTuple):
    """One training step's data, all on the same device.

    On a CPU the images lie in a buffer that is filled again after the next batch was asked for:
    clone what you keep longer.
    """

    images: Tensor
    """(B, 3, S, S) uint8, channels last: final pixels; normalise on the device."""
    labels: Tensor
    """(B,) int64."""
    sample_ids: Tensor
    """(B,) int64, positions in the full training set."""
    view: int
    """The view that all of these images show."""
    rows: Rows | None
    """The teacher's answers; None where the loader has no store."""
    weights: Tensor | None
    """(B,) float32 weight of each sample's loss; None for equal weights."""


class DistillLoader:
    """Streams a subset's views together with their cached logits.

    Epoch e, from 0, shows view 1 + (e mod V). With a store of V = 0 it shows view 1 + e with the
    rows of the clean view; without a store view 1 + e and no rows.

    Args:
        beton: path of the packed training images, or an opened beton.
        store: a store, its path, or None to train without a teacher's answers.
        subset: a Subset, or sample ids in any order; all rows of the store, or all that a packed
            subset holds, when left out.
        batch_size: most samples of one batch; batch sizes differ by at most one.
        seed: of the order; views have the store's own seed.
        device: where the batches lie.
        rank: of this process, in [0, world_size); each rank gets its own share of every epoch.
        world_size: number of processes.
        num_workers: threads that read and decode; all that this process may use when left out.
        order: of the samples in an epoch, see `kdcache.reader.order`.
        memory_budget_bytes: of buffers and staged rows; half of the machine's when left out. Rows
            beyond it go to a memory-mapped temporary file, buffers beyond it are refused.
        views: how pixels are made where there is no store; the manifest's when left out.
        epochs: how many there will be, where it is known: the last reads no rows ahead.

    Raises:
        CacheMismatchError: if store and beton are of different data, or rows are missing.
        ConfigError: if an argument is out of its range.
    """

    def __init__(
        self,
        beton: Beton | Path | str,
        store: LogitStore | Path | str | None,
        subset: Subset | npt.ArrayLike | None = None,
        batch_size: int = 128,
        seed: int = 0,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        *,
        num_workers: int | None = None,
        order: Order = "random",
        memory_budget_bytes: int | None = None,
        views: Views | None = None,
        epochs: int | None = None,
    ) -> None:
        self.beton = beton if isinstance(beton, Beton) else open_beton(beton)
        self.store = LogitStore.open(store) if isinstance(store, (str, Path)) else store
        self.batch_size = batch_size
        self.seed = seed
        self.device = torch.device(device)
        self.rank = rank
        self.world_size = world_size
        self.order = order
        self.epochs = epochs
        if self.store is None:
            self.views = views or default_views(self.beton.manifest)
            self._stage = None
        else:
            if views is not None:
                raise ConfigError("views are given beside a store, expected the store to set them")
            require_same_data(self.beton, self.store)
            self.views = self.store.manifest.views
            self._stage = RowStage(self.store, memory_budget_bytes=memory_budget_bytes)
        self.sample_ids = self._checked_ids(subset)
        if not len(self._order(0)):
            raise ConfigError(
                f"world_size is {world_size}, expected at most {len(self.sample_ids)}, the samples "
                "of the subset: each rank needs one"
            )
        self._reader = PixelReader(
            self.beton,
            self.views,
            batch_size=batch_size,
            num_workers=num_workers,
            memory_budget_bytes=memory_budget_bytes,
        )

    def __len__(self) -> int:
        """Return the number of batches of this rank's epoch."""
        return len(batch_bounds(len(self._order(0)), self.batch_size)) - 1

    def view(self, epoch: int) -> int:
        """Return the view that an epoch shows."""
        if self.store is None or self.store.num_views == 0:
            return 1 + epoch
        return 1 + epoch % self.store.num_views

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, counted from 0, every sample once.

        Leaving the loop early, or dropping the iterator, stops the threads behind it.
        """
        if epoch < 0 or (self.epochs is not None and epoch >= self.epochs):
            rule = "of at least 0" if self.epochs is None else f"in [0, {self.epochs})"
            raise ConfigError(f"epoch is {epoch}, expected a number {rule}")
        order = self._order(epoch)
        bounds = batch_bounds(len(order), self.batch_size)
        rows = None
        if self._stage is not None:
            rows = self._stage.take(epoch, self._row_view(epoch), order)
            if epoch + 1 != self.epochs:
                self._stage.prefetch(epoch + 1, self._row_view(epoch + 1), self._order(epoch + 1))
        view = self.view(epoch)
        batches = np.split(self.beton.positions(order), bounds[1:-1])
        for (start, end), pixels in zip(
            pairwise(bounds), self._reader.read(batches, view), strict=True
        ):
            yield Batch(
                images=self._to_device(pixels.images),
                labels=self._to_device(pixels.labels),
                sample_ids=self._to_device(pixels.sample_ids),
                view=view,
                rows=self._rows(rows, int(start), int(end)),
                weights=None,
            )

    def close(self) -> None:
        """Stop the background reading of rows."""
        if self._stage is not None:
            self._stage.close()

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        return epoch_order(
            self.sample_ids,
            seed=self.seed,
            epoch=epoch,
            rank=self.rank,
            world_size=self.world_size,
            order=self.order,
        )

    def _row_view(self, epoch: int) -> int:
        assert self.store is not None  # noqa: S101  (only a loader with a store asks)
        return self.view(epoch) if self.store.num_views else 0

    def _rows(self, rows: Tensor | None, start: int, end: int) -> Rows | None:
        if rows is None or self.store is None:
            return None
        codec = self.store.codec_of(self.store.num_views)  # of every view from 1; of view 0 alone
        return Rows(self._to_device(rows[start:end]), codec)

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor if self.device.type == "cpu" else tensor.to(self.device)

    def _checked_ids(self, subset: Subset | npt.ArrayLike | None) -> npt.NDArray[np.int64]:
        if subset is None:
            if self.store is not None and not self.beton.manifest.is_subset:
                return self.store.sample_ids
            subset = self.beton.sample_ids
        given = np.asarray(subset.sample_ids if isinstance(subset, Subset) else subset)
        if given.ndim != 1 or not len(given) or not np.issubdtype(given.dtype, np.integer):
            raise ConfigError(
                f"subset is {given.dtype} of shape {given.shape}, expected one row of integer "
                "sample ids"
            )
        ids = np.unique(given).astype(np.int64)
        if len(ids) != len(given):
            raise ConfigError(
                f"subset has {len(given):,} sample ids of which {len(ids):,} are different, "
                "expected each once"
            )
        self.beton.positions(ids)
        if self.store is not None:
            missing = np.setdiff1d(ids, self.store.sample_ids)
            if len(missing) and self.store.num_views:
                raise CacheMismatchError(
                    f"{self.store.path} lacks the rows of {len(missing):,} of {len(ids):,} "
                    f"samples, the first is {missing[0]}. Build a store that covers the subset"
                )
        return ids


def require_same_data(beton: Beton, store: LogitStore) -> None:
    """Compare the data that a store was built from with a beton.

    Raises:
        CacheMismatchError: if they differ.
    """
    found = beton.manifest.data_fingerprint
    if found != store.manifest.data_fingerprint:
        raise CacheMismatchError(
            f"{store.path} was built from other data than {beton.path}: data_fingerprint is "
            f"{store.manifest.data_fingerprint[:12]}, expected {found[:12]}. "
            "Run kdcache build-logits with --overwrite, or name another store with --teacher"
        )
