"""Prefetch an epoch's encoded rows, in the order of use, while the previous epoch trains."""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kdcache.errors import TrainingError
from kdcache.memory import default_budget_bytes
from kdcache.store.codecs.codec import Codec
from kdcache.store.logit_store import LogitStore


class Rows(NamedTuple):
    """The teacher's logits for a batch, as the store encodes them."""

    encoded: Tensor
    """(B, W) in the codec's dtype, where W is its row width."""
    codec: Codec

    def logits(self, temperature: float | None = None) -> Tensor:
        """Return (B, C) float32 logits, up to a constant in each row, on the rows' device.

        Args:
            temperature: temperature at which they will be used; see `Codec.decode`.

        Raises:
            ConfigError: if the rows are bound to another temperature.
        """
        decoded: Tensor = self.codec.decode(self.encoded, temperature=temperature)
        return decoded


class RowPrefetcher:
    """Reads the rows of the next epoch in the background.

    Args:
        store: the store to read.
        memory_budget_bytes: memory for the rows of two epochs; larger ones go to memory-mapped
            temporary files. Default: half of what this process may take.
    """

    def __init__(self, store: LogitStore, *, memory_budget_bytes: int | None = None) -> None:
        self._store = store
        given = memory_budget_bytes
        self._budget = default_budget_bytes() if given is None else given
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="kdcache-staging")
        self._next: tuple[int, int, Future[Tensor]] | None = None

    def prefetch(self, epoch: int, view: int, sample_ids: npt.NDArray[np.int64]) -> None:
        """Start reading an epoch's rows."""
        self._next = epoch, view, self._pool.submit(self._read, view, sample_ids)

    def take(self, epoch: int, view: int, sample_ids: npt.NDArray[np.int64]) -> Tensor:
        """Return an epoch's rows, (n, W); rows that were not prefetched are read now."""
        ready, self._next = self._next, None
        if ready is not None and ready[:2] == (epoch, view):
            return ready[2].result()
        return self._read(view, sample_ids)

    def close(self) -> None:
        """Stop reading, after the read in progress."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, view: int, sample_ids: npt.NDArray[np.int64]) -> Tensor:
        codec = self._store.codec_of(view)
        shape = (len(sample_ids), codec.row_width)
        needed_bytes = 2 * shape[0] * shape[1] * np.dtype(codec.dtype).itemsize
        rows = _in_memory(shape, codec) if needed_bytes <= self._budget else _on_disk(shape, codec)
        return torch.from_numpy(self._store.rows(sample_ids, view, out=rows))


def _in_memory(shape: tuple[int, int], codec: Codec) -> npt.NDArray[Any]:
    return np.empty(shape, dtype=codec.dtype)


def _on_disk(shape: tuple[int, int], codec: Codec) -> npt.NDArray[Any]:
    needed_bytes = shape[0] * shape[1] * np.dtype(codec.dtype).itemsize
    with tempfile.TemporaryFile(prefix="kdcache-rows-") as file:
        try:
            # Reserve the space before mapping: a write to a map on a full disk kills the process.
            os.posix_fallocate(file.fileno(), 0, needed_bytes)
        except OSError as error:
            raise TrainingError(
                f"the rows of an epoch take {needed_bytes:,} bytes beyond the memory budget, and "
                f"{tempfile.gettempdir()} has no room for them ({error.strerror}). Set TMPDIR to a "
                "folder with more space, or build a store with a smaller --codec"
            ) from error
        # The map keeps the file alive; the system removes it with the map.
        return np.memmap(file, dtype=codec.dtype, mode="r+", shape=shape)
