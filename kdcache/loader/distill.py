"""Define `DistillLoader`: batches of a subset's images, with the teacher's logits for them."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Self, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kdcache.compute.normalize import Normalise
from kdcache.data.beton import Beton, open_beton
from kdcache.data.views import Views, default_views
from kdcache.errors import CacheMismatchError, ConfigError
from kdcache.identity import differences
from kdcache.loader.batch import Batch
from kdcache.loader.cuda_prefetch import prefetch_to_cuda
from kdcache.loader.staging import RowPrefetcher, Rows
from kdcache.options import Order
from kdcache.reader.batches import PixelReader
from kdcache.reader.order import batch_bounds, epoch_order
from kdcache.selection.subset import Subset
from kdcache.store.logit_store import LogitStore


class LoaderState(TypedDict):
    """The position of a `DistillLoader` in an epoch."""

    epoch: int
    delivered_batches: int
    """Number of batches of this epoch that the loop has received."""
    order_identity: dict[str, str | int | None]
    """Everything that decides the order of the samples; `load_state_dict` compares it."""


class DistillLoader:
    """Loads batches of a subset's images with their cached logits.

    Epoch e, counted from 0, shows view 1 + (e mod V). With V = 0 it shows view 1 + e with the rows
    of the clean view. Without a store it shows view 1 + e, or 1 + (e mod `num_views`), without
    rows. The order of the samples depends only on (seed, epoch).

        with DistillLoader("train.beton", "teacher.zarr", batch_size=256) as loader:
            for epoch in range(90):
                loader.set_epoch(epoch)
                for batch in loader:
                    student(batch.normalized()), batch.teacher_logits(), batch.labels

    `state_dict` after any batch, and `load_state_dict` into a loader with the same arguments,
    continue in the middle of an epoch with the next batch. `epoch(e)` yields the batches of an
    epoch without changing this state.

    Args:
        beton: path of the packed training images, or an opened beton.
        store: a store, its path, or None to train without a teacher.
        subset: a Subset, or sample ids in any order. Default: all rows of the store, or all samples
            of a packed subset.
        batch_size: maximum number of samples in a batch; batch sizes differ by at most one.
        seed: seed of the order; views have the store's own seed.
        device: device of the batches.
        rank: index of this process, in [0, world_size); the ranks divide every epoch.
        world_size: number of processes.
        num_workers: threads that read and decode. Default: all that this process may use.
        order: order of the samples in an epoch, see `kdcache.reader.order`.
        memory_budget_bytes: memory for buffers and prefetched rows. Default: half of what this
            process may take. Larger rows go to a memory-mapped temporary file; larger buffers raise
            ConfigError.
        views: policy, seed and image size if there is no store. Default: the manifest's.
        num_views: V. Default: all views of the store; without a store a fresh view in each epoch.
        epochs: number of epochs, if known; the loader then prefetches no rows after the last one.

    Raises:
        CacheMismatchError: if the store was built from other data, or lacks rows.
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
                raise ConfigError(
                    "views are given with a store, expected none: the store defines them",
                    parameter="views",
                )
            if num_views is None:
                self.num_views = self.store.num_views
            elif num_views > self.store.num_views:
                raise ConfigError(
                    parameter="num_views",
                    value=num_views,
                    rule=f"at most {self.store.num_views}, the views of {self.store.path}",
                    remedy=f"For more, run kdcache build-logits with --views {num_views}",
                )
            require_same_data(self.beton, self.store)
            self.views = self.store.manifest.views
            self._prefetcher = RowPrefetcher(self.store, memory_budget_bytes=memory_budget_bytes)
        self.sample_ids = self._validate_subset(subset)
        data = self.beton.manifest
        self._normalize = Normalise(data.mean, data.std).to(self.device)
        self._is_closed = False
        self._epoch = 0
        self._delivered = 0
        """Batches of the current epoch that the loop has received."""
        self._first = 0
        """Index of the batch with which the next iteration starts."""
        if not len(self._order(0)):
            raise ConfigError(
                parameter="world_size",
                value=world_size,
                rule=f"at most {len(self.sample_ids)}, the samples of the subset",
            )
        self._reader = PixelReader(
            self.beton,
            self.views,
            batch_size=batch_size,
            num_workers=num_workers,
            memory_budget_bytes=memory_budget_bytes,
        )

    def __enter__(self) -> Self:
        """Return the loader, which `__exit__` closes."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the loader."""
        self.close()

    def __len__(self) -> int:
        """Return the number of batches in this rank's epoch."""
        return len(self.batch_sizes)

    @property
    def batch_sizes(self) -> npt.NDArray[np.int64]:
        """Number of samples in each batch of this rank's epoch; the same in every epoch."""
        return np.diff(batch_bounds(len(self._order(0)), self.batch_size))

    def view(self, epoch: int) -> int:
        """Return the view that an epoch shows."""
        return 1 + (epoch % self.num_views if self.num_views else epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration, counted from 0.

        If the epoch is that of a state that was just loaded, the position in it is kept; any other
        epoch starts with its first batch.

        Raises:
            ConfigError: if the epoch is negative, or not below `epochs`.
        """
        self._require_epoch(epoch)
        if epoch != self._epoch:
            self._epoch, self._delivered, self._first = epoch, 0, 0

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the epoch that `set_epoch` chose.

        The first iteration after `load_state_dict` starts after the delivered batches, every other
        one with the first batch. If the loop ends early, the threads that serve it stop.
        """
        first, self._first = self._first, 0
        self._delivered = first  # here, not in the generator, which starts with the first batch
        return self._counted(first)

    def _counted(self, first: int) -> Iterator[Batch]:
        with closing(self._batches(self._epoch, first)) as batches:
            for batch in batches:
                # Before the yield, because this batch counts as delivered in the body of the loop.
                self._delivered += 1
                yield batch

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield all batches of an epoch, counted from 0; `state_dict` does not count them.

        If the loop ends early, or the iterator is deleted, the threads that serve it stop.

        Raises:
            ConfigError: if the epoch is negative, or not below `epochs`.
        """
        self._require_epoch(epoch)
        return self._batches(epoch, 0)

    def state_dict(self) -> LoaderState:
        """Return the position in the epoch: plain values, which JSON and torch.save can hold.

        It counts the batches that the loop has received; prefetched ones do not count. Save it
        together with the student after the step on a batch.
        """
        return LoaderState(
            epoch=self._epoch,
            delivered_batches=self._delivered,
            order_identity=self._order_identity(),
        )

    def load_state_dict(self, state: LoaderState) -> None:
        """Continue from a state: the next iteration yields the batch after it.

        A state of a finished epoch yields no batch until `set_epoch` chooses another epoch.

        Raises:
            CacheMismatchError: if a loader of other samples, seed, batch size, order, ranks or
                views made the state; names what differs.
            ConfigError: if its epoch or its number of batches is out of range.
        """
        if differ := differences(state["order_identity"], self._order_identity()):
            raise CacheMismatchError(
                f"the loader's state belongs to another order of samples: {differ}. Make the "
                "DistillLoader with the same arguments, or start the epoch again with set_epoch"
            )
        self._require_epoch(state["epoch"])
        delivered = state["delivered_batches"]
        if not 0 <= delivered <= len(self):
            raise ConfigError(
                f"delivered_batches of the loader's state is {delivered}, expected a number in "
                f"[0, {len(self)}]"
            )
        self._epoch, self._delivered, self._first = state["epoch"], delivered, delivered

    def close(self) -> None:
        """Stop reading rows in the background. A closed loader yields no more batches."""
        self._is_closed = True
        if self._prefetcher is not None:
            self._prefetcher.close()

    def _require_epoch(self, epoch: int) -> None:
        if epoch < 0 or (self.epochs is not None and epoch >= self.epochs):
            rule = "of at least 0" if self.epochs is None else f"in [0, {self.epochs})"
            raise ConfigError(parameter="epoch", value=epoch, rule=f"a number {rule}")

    def _order_identity(self) -> dict[str, str | int | None]:
        """Return everything that decides which samples and view a batch of an epoch holds."""
        return {
            "data_fingerprint": self.beton.manifest.data_fingerprint,
            "sample_ids": hashlib.sha256(self.sample_ids.astype("<i8").tobytes()).hexdigest(),
            "batch_size": self.batch_size,
            "seed": self.seed,
            "rank": self.rank,
            "world_size": self.world_size,
            "order": self.order,
            "num_views": self.num_views,
        }

    def _batches(self, epoch: int, first: int) -> Generator[Batch]:
        """Yield the batches of an epoch from index `first` on, on the loader's device."""
        if self._is_closed:
            raise ConfigError("this DistillLoader is closed. Make another one")
        batches = self._host_batches(epoch, first)
        yield from batches if self.device.type == "cpu" else prefetch_to_cuda(batches, self.device)

    def _host_batches(self, epoch: int, first: int) -> Iterator[Batch]:
        order = self._order(epoch)
        rows = None
        if self._prefetcher is not None:
            rows = self._prefetcher.take(epoch, self._row_view(epoch), order)
            if epoch + 1 != self.epochs:
                self._prefetcher.prefetch(
                    epoch + 1, self._row_view(epoch + 1), self._order(epoch + 1)
                )
        view = self.view(epoch)
        end = int(batch_bounds(len(order), self.batch_size)[first])
        for pixels in self._reader.read(self._positions(epoch)[first:], view):
            start, end = end, end + len(pixels.labels)
            yield Batch(
                images=pixels.images,
                labels=pixels.labels,
                sample_ids=pixels.sample_ids,
                view=view,
                rows=self._rows(rows, start, end),
                weights=None,
                normalize=self._normalize,
            )

    def _positions(self, epoch: int) -> list[npt.NDArray[np.int64]]:
        """Return the positions in the beton, one array per batch of an epoch."""
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
        assert self.store is not None  # noqa: S101  (called only if there is a store)
        return self.view(epoch) if self.num_views else 0

    def _rows(self, rows: Tensor | None, start: int, end: int) -> Rows | None:
        if rows is None or self.store is None:
            return None
        codec = self.store.codec_of(self.num_views or 0)  # all augmented views have one codec
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
                f"subset has {len(given):,} sample ids of which only {len(ids):,} are different, "
                "expected no id twice"
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
