"""Lend buffers for decoded pixels, and fill a buffer again only when nobody uses it.

A new buffer for each batch would cost a page fault per 4 KiB; a ring of buffers would change the
pixels of a batch that the caller keeps.
"""

from __future__ import annotations

import queue
import weakref

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Buffer = npt.NDArray[np.uint8]


class BufferPool:
    """Buffers of one shape.

    Args:
        shape: shape of each buffer.
        count: number of unused buffers that are kept for later.
    """

    def __init__(self, shape: tuple[int, ...], count: int) -> None:
        self._shape = shape
        self._count = count
        # Its `put` may run inside another `put` of the same thread, as a finalizer does.
        self._spare: queue.SimpleQueue[Buffer] = queue.SimpleQueue()

    def take(self) -> Buffer:
        """Return an unused buffer, or a new one if there is none. Its values are arbitrary."""
        try:
            return self._spare.get_nowait()
        except queue.Empty:
            # A copy from pinned memory overlaps with the GPU's work.
            pinned = torch.cuda.is_available()
            made: Buffer = torch.empty(self._shape, dtype=torch.uint8, pin_memory=pinned).numpy()
            return made

    def lend(self, buffer: Buffer, length: int) -> Tensor:
        """Return the first `length` items of a buffer as a tensor, without a copy.

        The buffer can be taken again once no tensor or array uses this memory.
        """
        lent = buffer[:length]
        # The tensor's memory holds on to `lent`, and so do all its views and the arrays of them.
        weakref.finalize(lent, self.give_back, buffer).atexit = False
        return torch.from_numpy(lent)

    def give_back(self, buffer: Buffer) -> None:
        """Keep an unused buffer for later, unless there are enough of them."""
        if self._spare.qsize() < self._count:
            self._spare.put(buffer)
