"""`DistillLoader`: the kept samples, each with the teacher's answer to exactly these pixels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kdcache.data.beton import Beton, open_beton
from kdcache.data.views import Views, default_views
from kdcache.errors import CacheMismatchError, ConfigError
from kdcache.loader.batch import Batch
from kdcache.loader.cuda_prefetch import prefetch_to_cuda
from kdcache.loader.staging import RowPrefetcher, Rows
from kdcache.options import Order
from kdcache.reader.batches import PixelReader
from kdcache.reader.order import batch_bounds, epoch_order
from kdcache.selection.subset import Subset
from kdcache.store.logit_store import LogitStore


class DistillLoader:
    """Streams a subset's views together with their cached logits.

    Epoch e, from 0, shows view 1 + (e mod V). With V = 0 it shows view 1 + e with the rows of the
    clean view; without a store view 1 + e, or 1 + (e mod `num_views`), and no rows.

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
        memory_budget_bytes: of buffers and staged rows; half of what this process may take
            when left out. Rows beyond it go to a memory-mapped temporary file, buffers are refused.
        views: how pixels are made where there is no store; the manifest's when left out.
        num_views: V; all views of the store, or without one a fresh view in each epoch, when left
            out.
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
        num_views: int | None = None,
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
        self.num_views = num_views
        if self.store is None:
            self.views = views or default_views(self.beton.manifest)
            self._prefetcher = None
        else:
            if views is not None:
                raise ConfigError("views are given beside a store, expected the store to set them")
            if num_views is None:
                self.num_views = self.store.num_views
            elif num_views > self.store.num_views:
                raise ConfigError(
                    f"num_views is {num_views}, expected at most {self.store.num_views}, the views "
                    f"of {self.store.path}. For more, run kdcache build-logits with --views "
                    f"{num_views}"
                )
            require_same_data(self.beton, self.store)
            self.views = self.store.manifest.views
            self._prefetcher = RowPrefetcher(self.store, memory_budget_bytes=memory_budget_bytes)
        self.sample_ids = self._validate_subset(subset)
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
        return len(self.batch_sizes)

    @property
    def batch_sizes(self) -> npt.NDArray[np.int64]:
        """The samples of each batch of this rank's epoch; the same in every epoch."""
        return np.diff(batch_bounds(len(self._order(0)), self.batch_size))

    def view(self, epoch: int) -> int:
        """Return the view that an epoch shows."""
        return 1 + (epoch % self.num_views if self.num_views else epoch)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, counted from 0, every sample once.

        Leaving the loop early, or dropping the iterator, stops the threads behind it.
        """
        if epoch < 0 or (self.epochs is not None and epoch >= self.epochs):
            rule = "of at least 0" if self.epochs is None else f"in [0, {self.epochs})"
            raise ConfigError(f"epoch is {epoch}, expected a number {rule}")
        batches = self._on_host(epoch)
        yield from batches if self.device.type == "cpu" else prefetch_to_cuda(batches, self.device)

    def _on_host(self, epoch: int) -> Iterator[Batch]:
        order = self._order(epoch)
        rows = None
        if self._prefetcher is not None:
            rows = self._prefetcher.take(epoch, self._row_view(epoch), order)
            if epoch + 1 != self.epochs:
                self._prefetcher.prefetch(
                    epoch + 1, self._row_view(epoch + 1), self._order(epoch + 1)
                )
        view = self.view(epoch)
        batches = self._positions(epoch)
        end = 0
        for pixels in self._reader.read(batches, view):
            start, end = end, end + len(pixels.labels)
            yield Batch(
                images=pixels.images,
                labels=pixels.labels,
                sample_ids=pixels.sample_ids,
                view=view,
                rows=self._rows(rows, start, end),
                weights=None,
            )

    def close(self) -> None:
        """Stop the background reading of rows."""
        if self._prefetcher is not None:
            self._prefetcher.close()

    def _positions(self, epoch: int) -> list[npt.NDArray[np.int64]]:
        """Return the positions in the beton of each batch of an epoch."""
        order = self._order(epoch)
        return np.split(
            self.beton.positions(order), batch_bounds(len(order), self.batch_size)[1:-1]
        )

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
        return self.view(epoch) if self.num_views else 0

    def _rows(self, rows: Tensor | None, start: int, end: int) -> Rows | None:
        if rows is None or self.store is None:
            return None
        codec = self.store.codec_of(self.num_views or 0)  # of every view from 1; of view 0 alone
        return Rows(rows[start:end], codec)

    def _validate_subset(self, subset: Subset | npt.ArrayLike | None) -> npt.NDArray[np.int64]:
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
            if len(missing) and self.num_views:
                raise CacheMismatchError(
                    f"{self.store.path} lacks the rows of {len(missing):,} of {len(ids):,} "
                    f"samples, the first is {missing[0]}. Make them with kdcache build-logits "
                    "--subset and the name of this subset, or without --subset for all data"
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
