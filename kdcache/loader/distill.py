"""Define `DistillLoader`: batches of a subset's images, with the teacher's logits for them."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Self, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kdcache.arguments import require_int
from kdcache.compute.normalize import Normalise
from kdcache.data.beton import Beton
from kdcache.data.policy import Policy
from kdcache.data.views import Views
from kdcache.errors import CacheMismatchError, ConfigError
from kdcache.identity import differences
from kdcache.loader.arguments import (
    as_beton,
    as_device,
    as_order,
    as_store,
    as_views,
    wrong_type,
)
from kdcache.loader.batch import Batch
from kdcache.loader.cuda_prefetch import prefetch_to_cuda
from kdcache.loader.iteration import Iteration
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
        subset: a Subset, the path of its file, or sample ids in any order. Default: all rows of
            the store, or all samples of a packed subset.
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
        views: policy, seed and image size if there is no store; a Policy, or the text of one, has
            seed 0 and the manifest's image size. Default: the manifest's.
        num_views: V. Default: all views of the store; without a store a fresh view in each epoch.
        epochs: number of epochs, if known; the loader then prefetches no rows after the last one.

    Raises:
        CacheMismatchError: if the store was built from other data, or lacks rows.
        ConfigError: if an argument has another type, or is out of its range.
    """

    def __init__(
        self,
        beton: Beton | Path | str,
        store: LogitStore | Path | str | None,
        subset: Subset | Path | str | npt.ArrayLike | None = None,
        batch_size: int = 128,
        seed: int = 0,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        *,
        num_workers: int | None = None,
        order: Order = "random",
        memory_budget_bytes: int | None = None,
        views: Views | Policy | str | None = None,
        num_views: int | None = None,
        epochs: int | None = None,
    ) -> None:
        self.beton = as_beton(beton)
        self.store = as_store(store)
        self.batch_size = require_int("batch_size", batch_size, minimum=1)
        self.seed = require_int("seed", seed, minimum=0)
        self.device = as_device(device)
        self.world_size = require_int("world_size", world_size, minimum=1)
        self.rank = require_int("rank", rank, minimum=0, maximum=self.world_size - 1)
        self.order = as_order(order)
        self.epochs = None if epochs is None else require_int("epochs", epochs, minimum=1)
        self.num_views = (
            None if num_views is None else require_int("num_views", num_views, minimum=0)
        )
        if memory_budget_bytes is not None:
            memory_budget_bytes = require_int("memory_budget_bytes", memory_budget_bytes, minimum=1)
        if self.store is None:
            self.views = as_views(views, self.beton)
            self._prefetcher = None
        else:
            if views is not None:
                raise ConfigError(
                    "views are given with a store, expected none: the store defines them",
                    parameter="views",
                    value=views,
                )
            if self.num_views is None:
                self.num_views = self.store.num_views
            elif self.num_views > self.store.num_views:
                raise ConfigError(
                    parameter="num_views",
                    value=self.num_views,
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
        self._iteration: weakref.ref[Iteration] | None = None
        """The iteration that reads now, or read last."""
        self._epoch = 0
        self._delivered = 0
        """Batches of the current epoch that the loop has received."""
        self._first = 0
        """Index of the batch with which the next iteration starts."""
        if not len(self._order(0)):
            raise ConfigError(
                parameter="world_size",
                value=self.world_size,
                rule=f"at most {len(self.sample_ids)}, the samples of the subset",
            )
        self._reader = PixelReader(
            self.beton,
            self.views,
            batch_size=self.batch_size,
            num_workers=num_workers,
            memory_budget_bytes=memory_budget_bytes,
        )

    def __repr__(self) -> str:
        """Return the data, the teacher and the numbers."""
        store = None if self.store is None else str(self.store.path)
        return (
            f"{type(self).__name__}({str(self.beton.path)!r}, {store!r}, "
            f"samples={len(self.sample_ids)}, batch_size={self.batch_size}, "
            f"device={str(self.device)!r})"
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
            ConfigError: if the epoch is no integer, is negative, or is not below `epochs`.
        """
        epoch = self._require_epoch(epoch)
        if epoch != self._epoch:
            self._epoch, self._delivered, self._first = epoch, 0, 0

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the epoch that `set_epoch` chose.

        The first iteration after `load_state_dict` starts after the delivered batches, every other
        one with the first batch. If the loop ends early, the threads that serve it stop. A loader
        serves one iteration at a time: a new one ends the one before it, which then raises
        ConfigError when it is asked for another batch.
        """
        first, self._first = self._first, 0
        self._delivered = first  # here, not in the generator, which starts with the first batch
        return Iteration(self._start, self._counted(first))

    def _counted(self, first: int) -> Generator[Batch]:
        with closing(self._batches(self._epoch, first)) as batches:
            for batch in batches:
                # Before the yield, because this batch counts as delivered in the body of the loop.
                self._delivered += 1
                yield batch

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield all batches of an epoch, counted from 0; `state_dict` does not count them.

        If the loop ends early, or the iterator is deleted, the threads that serve it stop. Like a
        loop over the loader itself, it ends the iteration before it.

        Raises:
            ConfigError: if the epoch is no integer, is negative, or is not below `epochs`.
        """
        return Iteration(self._start, self._batches(self._require_epoch(epoch), 0))

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
            ConfigError: if it is not the state of a loader, or its epoch or its number of batches
                is out of range.
        """
        _require_state(state)
        if differ := differences(state["order_identity"], self._order_identity()):
            raise CacheMismatchError(
                f"the loader's state belongs to another order of samples: {differ}. Make the "
                "DistillLoader with the same arguments, or start the epoch again with set_epoch"
            )
        epoch = self._require_epoch(state["epoch"])
        delivered = require_int(
            "delivered_batches", state["delivered_batches"], minimum=0, maximum=len(self)
        )
        self._epoch, self._delivered, self._first = epoch, delivered, delivered

    def close(self) -> None:
        """Stop reading rows in the background. A closed loader yields no more batches."""
        self._is_closed = True
        if self._prefetcher is not None:
            self._prefetcher.close()

    def _require_epoch(self, epoch: int) -> int:
        last = None if self.epochs is None else self.epochs - 1
        return require_int("epoch", epoch, minimum=0, maximum=last)

    def _start(self, iteration: Iteration) -> None:
        """End the iteration before this one: buffers and decoder serve one at a time."""
        before = None if self._iteration is None else self._iteration()
        if before is not None:
            before.supersede()
        self._iteration = weakref.ref(iteration)

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

    def _validate_subset(
        self, subset: Subset | Path | str | npt.ArrayLike | None
    ) -> npt.NDArray[np.int64]:
        if isinstance(subset, (str, Path)):
            subset = Subset.load_of(subset, self.beton.manifest.data_fingerprint)
        if subset is None:
            if self.store is not None and not self.beton.manifest.is_subset:
                return self.store.sample_ids
            subset = self.beton.sample_ids
        given = np.asarray(subset.sample_ids if isinstance(subset, Subset) else subset)
        if given.ndim != 1 or not len(given) or not np.issubdtype(given.dtype, np.integer):
            raise ConfigError(
                f"subset is {given.dtype} of shape {given.shape}, expected one row of integer "
                "sample ids",
                parameter="subset",
                value=subset,
            )
        ids = np.unique(given).astype(np.int64)
        if len(ids) != len(given):
            raise ConfigError(
                f"subset has {len(given):,} sample ids of which only {len(ids):,} are different, "
                "expected no id twice",
                parameter="subset",
                value=subset,
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


def _require_state(state: object) -> None:
    if not isinstance(state, Mapping):
        raise wrong_type("state", state, "what state_dict returned")
    missing = [name for name in LoaderState.__required_keys__ if name not in state]
    if missing:
        raise ConfigError(
            f"the loader's state has no {', '.join(sorted(missing))}, expected what state_dict "
            "returned",
            parameter="state",
            value=state,
        )


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
