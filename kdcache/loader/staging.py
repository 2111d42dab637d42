"""One epoch's encoded rows in memory, in the order of use, read while the epoch before trains."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kdcache.store.codec import Codec
from kdcache.store.logit_store import LogitStore


class Rows(NamedTuple):
    """The teacher's answers to a batch, still encoded."""

    encoded: Tensor
    """(B, width) of the codec's dtype."""
    codec: Codec

    def logits(self) -> Tensor:
        """Return (B, C) float32 logits, up to a constant in each row, on the rows' device."""
        decoded: Tensor = self.codec.decode(self.encoded)
        return decoded


class RowStage:
    """Reads the rows of the next epoch in the background.

    Args:
        store: where they come from.
    """

    def __init__(self, store: LogitStore) -> None:
        self._store = store
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="kdcache-staging")
        self._next: tuple[int, int, Future[Tensor]] | None = None

    def prefetch(self, epoch: int, view: int, sample_ids: npt.NDArray[np.int64]) -> None:
        """Start to read an epoch's rows."""
        self._next = epoch, view, self._pool.submit(self._read, view, sample_ids)

    def take(self, epoch: int, view: int, sample_ids: npt.NDArray[np.int64]) -> Tensor:
        """Return an epoch's rows, (n, width), prefetched or read now."""
        ready, self._next = self._next, None
        if ready is not None and ready[:2] == (epoch, view):
            return ready[2].result()
        return self._read(view, sample_ids)

    def close(self) -> None:
        """Stop reading; what is under way is finished first."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, view: int, sample_ids: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(self._store.rows(sample_ids, view))
