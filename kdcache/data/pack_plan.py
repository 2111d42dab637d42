"""Plan a pack: look at a few images, choose the encoding, and divide the work among workers."""

from __future__ import annotations

import pickle
from typing import Literal, NamedTuple

import numpy as np

from kdcache.cores import available_cores
from kdcache.data.images import MAX_IMAGE_PIXELS
from kdcache.data.pack_tasks import TASKS_PER_WORKER, Task, Workload, store_one
from kdcache.data.policy import MAX_SMALL_IMAGE_SIZE
from kdcache.data.resources import ResourceEstimate
from kdcache.data.source import Split, reader_bytes
from kdcache.data.stored_image import StoredImage
from kdcache.options import PackOptions

_TASK_BYTES = 4 << 20
"""Maximum size of the images that a worker returns at once: small, so that many fit in a queue."""

_MAX_IMAGES_PER_TASK = 256

_IMAGE_COST_BYTES = 20_000
"""Fixed cost of an image, as a number of decoded bytes that take equally long."""

_WORTH_A_WORKER_BYTES = 64 << 20
"""Number of decoded bytes that take about as long as the start of a process."""


def new_task(split: Split, write_mode: Literal["raw", "jpg"], options: PackOptions) -> Task:
    """Return the settings of the worker processes."""
    limit = options.max_image_pixels or MAX_IMAGE_PIXELS
    return Task(split, write_mode, options.max_resolution, limit)


class Probe(NamedTuple):
    """Estimates from a few images at regular distances in a split."""

    largest_side: int
    """Maximum height or width in pixels after --max-resolution; 0 if no image was decoded."""
    decoded_bytes: int
    """Size of the largest image as RGB, in bytes."""
    raw_bytes: int
    """Mean size of an image as RGB, in bytes."""
    file_bytes: int
    """Mean size of an image's file, in bytes."""


def probe_split(split: Split, options: PackOptions) -> Probe:
    """Decode a few images of a split."""
    # The sizes of images often vary, so the sample covers the whole split.
    sampled = np.unique(np.linspace(0, len(split.labels) - 1, 64).astype(np.int64))
    task = new_task(split, "raw", options)
    stored = {position: store_one(task, position) for position in sampled.tolist()}
    images = {at: image for at, image in stored.items() if isinstance(image, StoredImage)}
    if not images:
        return Probe(0, 0, 0, 0)
    sizes = [len(image.content) for image in images.values()]
    files = [len(split.read(position)) for position in images]
    return Probe(
        largest_side=max(max(image.height, image.width) for image in images.values()),
        decoded_bytes=max(sizes),
        raw_bytes=sum(sizes) // len(sizes),
        file_bytes=sum(files) // len(files),
    )


def choose_write_mode(probe: Probe, options: PackOptions) -> Literal["raw", "jpg"]:
    """Return the encoding of the stored images."""
    if options.write_mode != "auto":
        return options.write_mode
    return "raw" if probe.largest_side <= MAX_SMALL_IMAGE_SIZE else "jpg"


def plan_workload(
    split: Split, probe: Probe, write_mode: Literal["raw", "jpg"], options: PackOptions
) -> Workload:
    """Divide a split among workers and estimate what the pack needs."""
    count = len(split.labels)
    stored_bytes = max(probe.raw_bytes if write_mode == "raw" else probe.file_bytes, 1)
    cores = available_cores()
    enough = count * (_IMAGE_COST_BYTES + probe.raw_bytes) // _WORTH_A_WORKER_BYTES
    workers = options.num_workers or min(cores, max(1, enough))
    images_per_task = min(
        _MAX_IMAGES_PER_TASK,
        max(1, _TASK_BYTES // stored_bytes),
        -(-count // (TASKS_PER_WORKER * workers)),
    )
    need = ResourceEstimate(
        samples=count,
        stored=stored_bytes,
        decoded=probe.decoded_bytes,
        split=len(pickle.dumps(split)),
        reader=reader_bytes(split, probe.file_bytes),
        queue=TASKS_PER_WORKER * images_per_task * stored_bytes,
    )
    task = new_task(split, write_mode, options)
    return Workload(task, workers, images_per_task, need)
