"""Decode and encode the images of a split in worker processes, in order."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import Literal, NamedTuple

from kdcache.data.images import store_image
from kdcache.data.resources import ResourceEstimate
from kdcache.data.source import Split
from kdcache.data.stored_image import StoredImage
from kdcache.errors import DatasetError

TASKS_PER_WORKER = 4
"""Number of tasks in the queue per worker."""


class BadImage(NamedTuple):
    """An image that could not be decoded."""

    position: int
    """Index of the image in its split of the source."""
    name: str
    reason: str


class Task(NamedTuple):
    """The settings of a worker process, which do not change while it runs."""

    split: Split
    write_mode: Literal["raw", "jpg"]
    max_resolution: int | None
    max_image_pixels: int


class Workload(NamedTuple):
    """The division of a split among workers, which does not affect the beton."""

    task: Task
    workers: int
    images_per_task: int
    need: ResourceEstimate


def stored_images(split: Split, workload: Workload) -> Iterator[StoredImage | BadImage]:
    """Yield every image of a split in order, decoded and encoded by worker processes.

    With one worker, this process does the work itself.
    """
    count, step = len(split.labels), workload.images_per_task
    if workload.workers == 1:
        yield from (store_one(workload.task, position) for position in range(count))
        return
    tasks = iter(range(0, count, step))
    # Not fork: this process has threads (numpy's, FFCV's), and a fork would copy their locks.
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(workload.workers, context, _start_worker, (workload.task,)) as pool:
        # A short queue keeps the workers busy and limits memory.
        pending: deque[Future[list[StoredImage | BadImage]]] = deque()
        longest = TASKS_PER_WORKER * workload.workers
        try:
            while True:
                while len(pending) < longest and (first := next(tasks, None)) is not None:
                    pending.append(_submit(pool, first, min(first + step, count)))
                if not pending:
                    return
                yield from pending.popleft().result()
        except BrokenProcessPool as error:
            # The pool ends the workers that it had when it broke, but waits for any started since.
            for worker in set(multiprocessing.active_children()) - others:
                worker.kill()
            raise DatasetError(
                "a pack worker was killed or could not start; memory may have run out, or the "
                "script that calls pack runs it at import. Use fewer with --num-workers, or "
                "smaller images with --max-resolution; in a script, call pack below "
                'if __name__ == "__main__":'
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _submit(
    pool: ProcessPoolExecutor, first: int, end: int
) -> Future[list[StoredImage | BadImage]]:
    try:
        return pool.submit(_store_some, first, end)
    except OSError as error:  # submit starts workers, which fails if the pool is breaking
        raise BrokenProcessPool(str(error)) from error


_worker_task: Task


def _start_worker(task: Task) -> None:
    global _worker_task  # noqa: PLW0603  (a worker process has only one task)
    _worker_task = task
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101  (every worker has one)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    """End this worker when the packing process has ended; otherwise it would wait forever."""
    parent.join()
    os._exit(1)


def _store_some(first: int, end: int) -> list[StoredImage | BadImage]:
    return [store_one(_worker_task, position) for position in range(first, end)]


def store_one(task: Task, position: int) -> StoredImage | BadImage:
    """Return the stored form of an image, or why it cannot be decoded.

    Raises:
        DatasetError: if its file cannot be read. That does not mean that the image is bad: a disk
            or a network may fail for a while.
    """
    split = task.split
    try:
        content = split.read(position)
    except DatasetError as error:
        return BadImage(position, split.name(position), str(error))
    except Exception as error:  # raised by the file system, or by the format of a table
        raise DatasetError(
            f"{split.name(position)} cannot be read: {error}. Check its disk and permissions"
        ) from error
    try:
        return store_image(
            content,
            write_mode=task.write_mode,
            max_resolution=task.max_resolution,
            max_image_pixels=task.max_image_pixels,
        )
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  (Pillow's plugins raise almost anything)
        reason = " ".join(str(error).split()) or type(error).__name__
        return BadImage(position, split.name(position), reason)
