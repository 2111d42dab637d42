"""Read batches of pixels, which a background thread decodes ahead.

kdcache does not use FFCV's loader. Its epoch thread waits forever if a step of the pipeline raises,
and keeps running if the loop that consumes the batches ends early. It refills buffers that the
caller still holds, and it drops the last batch. Its import takes longer than most commands.
"""

from __future__ import annotations

import atexit
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kdcache.arguments import require_int
from kdcache.cores import available_cores
from kdcache.data.beton import Beton, open_beton
from kdcache.data.beton_manifest import pack_again
from kdcache.data.policy import (
    CENTER_CROP_RATIO,
    DEFAULT_DECODE,
    DEFAULT_DEFINITION,
    DecodeMode,
    Filter,
    PixelDefinition,
    Policy,
)
from kdcache.data.views import Views
from kdcache.errors import ConfigError, DatasetError
from kdcache.memory import default_budget_bytes
from kdcache.reader.buffers import Buffer, BufferPool
from kdcache.reader.decode import ViewDecoder

_HELD_BATCHES = 1
"""Number of batches that the caller of a usual loop holds when it requests the next one."""


class PixelBatch(NamedTuple):
    """One batch of one view, on the CPU."""

    images: Tensor
    """(B, 3, S, S) uint8, channels last: final pixels."""
    labels: Tensor
    """(B,) int64."""
    sample_ids: Tensor
    """(B,) int64."""


class PixelReader:
    """Reads views of a beton's samples in any order.

    Args:
        beton: path of a packed beton, or an opened one.
        views: policy, seed and image size.
        batch_size: maximum number of samples in a batch.
        num_workers: number of threads, limited to what this process may use. Default: all of them.
        batches_ahead: number of batches that are decoded ahead.
        views_per_sample: maximum number of views in `read_views`, which decodes an image once.
        memory_budget_bytes: memory for the buffers. Default: half of what this process may take.

    Raises:
        ConfigError: if the buffers would take more than the budget, or an argument is out of range.
    """

    def __init__(
        self,
        beton: Beton | Path | str,
        views: Views,
        *,
        batch_size: int,
        num_workers: int | None = None,
        batches_ahead: int = 2,
        views_per_sample: int = 1,
        memory_budget_bytes: int | None = None,
    ) -> None:
        self.beton = beton if isinstance(beton, Beton) else open_beton(beton)
        self.views = views
        self.batch_size = require_int("batch_size", batch_size, minimum=1)
        self.num_workers = clamp_workers(num_workers)
        self.views_per_sample = views_per_sample
        self._decoder = ViewDecoder(
            views,
            self.beton,
            views_per_sample=views_per_sample,
            num_workers=min(self.num_workers, self.batch_size),
        )
        self._in_flight = batches_ahead + 1
        """Number of buffers that are free, being filled, or wait for the caller."""
        given = memory_budget_bytes
        self._require_memory(default_budget_bytes() if given is None else given)
        size = views.image_size
        shape = (self.batch_size, views_per_sample, size, size, 3)
        self._buffers = BufferPool(shape, self._in_flight + _HELD_BATCHES)
        self._in_use = threading.Lock()

    @property
    def memory_bytes(self) -> int:
        """Memory of all buffers: batches, and one scratch image for each thread.

        Batches that the caller keeps beyond the last one come on top.
        """
        pixels = 3 * self.views.image_size**2 * self.views_per_sample * self.batch_size
        return (self._in_flight + _HELD_BATCHES) * pixels + self._decoder.scratch_bytes

    def _require_memory(self, budget_bytes: int) -> None:
        if self.memory_bytes > budget_bytes:
            height, width = self.beton.sizes.max(axis=0)
            raise ConfigError(
                f"the reader's buffers would take {self.memory_bytes:,} bytes, expected at most "
                f"{budget_bytes:,}; batch size {self.batch_size}, images of up to {height} x "
                f"{width}. Use a smaller --batch-size, or pack with --max-resolution"
            )

    def read(self, batches: Sequence[npt.NDArray[np.int64]], view: int) -> Iterator[PixelBatch]:
        """Yield one view of the samples at the given positions.

        Leaving the loop early, or dropping the iterator, stops the threads behind it.

        Args:
            batches: positions in the beton, at most `batch_size` in each.
            view: view number.

        Raises:
            DatasetError: if a position is outside the beton or an image cannot be decoded.
            ConfigError: if this reader is already reading: use one reader for each loop.
        """
        for views in self.read_views(batches, [view]):
            yield views[0]

    def read_views(
        self, batches: Sequence[npt.NDArray[np.int64]], views: Sequence[int]
    ) -> Iterator[list[PixelBatch]]:
        """Yield several views of the samples at the given positions, as `read` yields one.

        Args:
            batches: positions in the beton, at most `batch_size` in each.
            views: view numbers, at most `views_per_sample`.
        """
        if not 0 < len(views) <= self.views_per_sample:
            raise ConfigError(
                f"views are {len(views)}, expected 1 to {self.views_per_sample} at once"
            )
        for positions in batches:
            self._check(positions)
        if not self._in_use.acquire(blocking=False):
            raise ConfigError(
                "this reader is already in use, expected one loop at a time. "
                "Finish the other loop, or open a second reader"
            )
        try:
            yield from self._run(batches, views)
        finally:
            self._in_use.release()

    def _run(
        self, batches: Sequence[npt.NDArray[np.int64]], views: Sequence[int]
    ) -> Iterator[list[PixelBatch]]:
        self._decoder.set_views(views)
        free: queue.SimpleQueue[Buffer | None] = queue.SimpleQueue()
        ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(self._in_flight):
            free.put(self._buffers.take())
        thread = threading.Thread(
            target=self._produce, args=(batches, free, ready), name="kdcache-reader", daemon=True
        )
        thread.start()
        _running[thread] = free
        try:
            for positions in batches:
                buffer = _next_buffer(ready, thread)
                self._raise_undecoded(positions)
                images = self._buffers.lend(buffer, len(positions))
                labels = torch.from_numpy(self.beton.labels[positions])
                sample_ids = torch.from_numpy(self.beton.sample_ids[positions])
                yield [
                    PixelBatch(images[:, index].permute(0, 3, 1, 2), labels, sample_ids)
                    for index in range(len(views))
                ]
                # The caller may keep the batch, so another buffer takes the place of this one.
                free.put(self._buffers.take())
        finally:
            _running.pop(thread, None)
            _stop(thread, free)
            self._take_back(free)
            self._take_back(ready)

    def _produce(
        self,
        batches: Sequence[npt.NDArray[np.int64]],
        free: queue.SimpleQueue[Buffer | None],
        ready: queue.SimpleQueue[Any],
    ) -> None:
        """Decode all batches; runs in its own thread and ends with the epoch."""
        try:
            with self._decoder.new_pool() as pool:
                for positions in batches:
                    buffer = free.get()
                    if buffer is None:
                        return
                    self._decoder.decode(positions, buffer, pool)
                    ready.put(buffer)
        except BaseException as error:  # noqa: BLE001  (it is raised again in the consumer)
            ready.put(error)

    def _take_back(self, buffers: queue.SimpleQueue[Any]) -> None:
        """Return the buffers of a loop that has ended to the pool."""
        while not buffers.empty():
            if isinstance(buffer := buffers.get(), np.ndarray):
                self._buffers.give_back(buffer)

    def _check(self, positions: npt.NDArray[np.int64]) -> None:
        if not 0 < len(positions) <= self.batch_size:
            raise DatasetError(
                f"a batch has {len(positions)} samples, expected 1 to {self.batch_size}"
            )
        if positions.min() < 0 or positions.max() >= len(self.beton):
            raise DatasetError(
                f"positions of a batch reach from {positions.min()} to {positions.max()}, "
                f"expected numbers in [0, {len(self.beton)})"
            )

    def _raise_undecoded(self, positions: npt.NDArray[np.int64]) -> None:
        bad = positions[self._decoder.status[positions] != 0]
        if len(bad):
            raise DatasetError(
                f"sample {self.beton.sample_ids[bad[0]]} (and {len(bad) - 1} more of its batch) "
                f"in {self.beton.path} cannot be decoded, expected a complete JPEG. "
                f"{pack_again(self.beton.path, self.beton.manifest)}"
            )


def view_pixels(
    beton: Beton | Path | str,
    policy: Policy | str,
    seed: int,
    view: int,
    sample_ids: npt.ArrayLike,
    *,
    image_size: int | None = None,
    center_crop_ratio: float = CENTER_CROP_RATIO,
    clean_filter: Filter = "bilinear",
    definition: PixelDefinition = DEFAULT_DEFINITION,
    decode: DecodeMode = DEFAULT_DECODE,
    num_workers: int | None = None,
) -> npt.NDArray[np.uint8]:
    """Return the pixels that teacher and student see.

    Args:
        beton: path of a packed beton, or an opened one.
        policy: a policy, or the text of one.
        seed: the store's view seed.
        view: view number; 0 is the clean view.
        sample_ids: (n,) in any order.
        image_size: height and width in pixels. Default: the manifest's.
        center_crop_ratio: side of the clean view's centre square, as a fraction of the short side.
        clean_filter: filter that resizes the clean view; the policy has that of the others.
        definition: pixel definition, `pillow` or `planes`.
        decode: `full`, or `scaled`.
        num_workers: number of threads. Default: all that this process may use.

    Returns:
        (n, S, S, 3) uint8.
    """
    opened = beton if isinstance(beton, Beton) else open_beton(beton)
    policy = Policy.parse(policy) if isinstance(policy, str) else policy
    views = Views(
        policy,
        seed,
        image_size or opened.manifest.image_size,
        center_crop_ratio,
        clean_filter,
        definition,
        decode,
    )
    positions = opened.positions(sample_ids)
    if not len(positions):
        return np.empty((0, views.image_size, views.image_size, 3), dtype=np.uint8)
    batches = np.array_split(positions, -(-len(positions) // 256))
    reader = PixelReader(opened, views, batch_size=256, num_workers=num_workers)
    return np.concatenate(
        [batch.images.permute(0, 2, 3, 1).numpy().copy() for batch in reader.read(batches, view)]
    )


def clamp_workers(num_workers: int | None) -> int:
    """Return the number of threads, limited to what numba may use here; all of them for None.

    Raises:
        ConfigError: if the number is below 1.
    """
    available = min(available_cores(), numba.config.NUMBA_NUM_THREADS)
    if num_workers is None:
        return available
    return min(require_int("num_workers", num_workers, minimum=1), available)


def workers_per_rank() -> int:
    """Return the number of threads per process, if torchrun runs several on this machine."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, clamp_workers(None) // processes)


_running: dict[threading.Thread, queue.SimpleQueue[Buffer | None]] = {}
"""The threads that decode now, each with its queue of free buffers."""


def _stop(thread: threading.Thread, free: queue.SimpleQueue[Buffer | None]) -> None:
    """End a thread after the batch that it decodes."""
    free.put(None)
    thread.join()


@atexit.register
def _stop_all() -> None:
    """End the threads of loops that the process leaves unfinished when it exits.

    Python 3.13 freezes daemon threads before it deletes the loops' generators, whose `finally`
    would then join a thread that never ends.
    """
    while _running:
        _stop(*_running.popitem())


def _next_buffer(ready: queue.SimpleQueue[Any], thread: threading.Thread) -> Buffer:
    """Return the next filled buffer.

    Raises:
        BaseException: the thread's exception, or RuntimeError if it has died without one.
    """
    while True:
        try:
            item = ready.get(timeout=5.0)
        except queue.Empty:
            if not thread.is_alive() and ready.empty():
                raise RuntimeError("the reader's thread ended without an error") from None
            continue
        if isinstance(item, BaseException):
            raise item
        buffer: Buffer = item
        return buffer
