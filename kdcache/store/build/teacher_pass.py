"""Run the teacher over blocks of rows and yield its outputs shard by shard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from kdcache.data.beton import Beton
from kdcache.data.sample_text import describe_sample
from kdcache.data.views import Views
from kdcache.errors import TeacherError
from kdcache.progress import progress_bar
from kdcache.reader.batches import PixelBatch, PixelReader
from kdcache.store.build.plan import Shard, view_groups
from kdcache.teacher.ensemble import Forward
from kdcache.teacher.out_of_memory import run_forward
from kdcache.teacher.pinned_copies import ToDevice, ToHost


class TeacherOutputs(NamedTuple):
    """The outputs of the teacher for one shard, on the host."""

    shard: Shard
    logits: Tensor
    """(n, C) float32."""
    labels: Tensor
    """(n,) int64."""
    view_keys: npt.NDArray[np.uint64]
    """(n,) view keys of the images."""
    features: Tensor | None
    """(n, F) float32 penultimate activations of view 0; None for other views or if not kept."""
    wait: Callable[[], None]
    """Waits until logits and features are on the host. Call it before you read them."""


def run_teacher(
    forward: Forward,
    work: list[Shard],
    beton: Beton,
    views: Views,
    *,
    batch_size: int,
    num_workers: int | None,
    after_batch: Callable[[], None] = lambda: None,
) -> Iterator[TeacherOutputs]:
    """Yield the outputs of every shard. Views of the same rows are made from one decoding.

    Args:
        forward: the teacher.
        work: the shards to build.
        beton: the training images.
        views: policy, seed and image size.
        batch_size: images per forward.
        num_workers: threads that read and decode.
        after_batch: called after each batch; an exception ends the pass.

    Raises:
        TeacherError: if the teacher does not return logits, or runs out of memory.
        DatasetError: if an image cannot be decoded.
    """
    groups = view_groups(work)
    reader = PixelReader(
        beton,
        views,
        batch_size=batch_size,
        num_workers=num_workers,
        # A teacher on the CPU uses all cores; decoding at the same time makes its threads wait.
        batches_ahead=0 if forward.device.type == "cpu" else 2,
        views_per_sample=max(len(numbers) for _, numbers in groups),
    )
    pipeline = DevicePipeline(
        forward, ToDevice(forward.device), ToHost(forward.device), after_batch
    )
    total = sum(len(shard.rows) for shard in work)
    with progress_bar(total=total, unit="image", description="teacher") as bar:
        # Read across blocks without a pause, as long as the views are the same.
        for numbers, of_group in groupby(groups, key=lambda group: group[1]):
            blocks = [block for block, _ in of_group]
            batches = [batch for block in blocks for batch in _batches(block, beton, batch_size)]
            # If the teacher fails, its traceback would keep the reader's thread alive: close it.
            with closing(reader.read_views(batches, numbers)) as read:  # type: ignore[type-var]
                for block in blocks:
                    yield from _block_outputs(
                        block, numbers, read, beton, batch_size, pipeline, bar
                    )


def require_finite(finite: npt.NDArray[np.bool_], shard: Shard, beton: Beton) -> None:
    """Check that all rows of a shard can be stored.

    Args:
        finite: (n,) True for each row that can be stored.
        shard: the shard of the rows.
        beton: the training images, for the name of the sample.

    Raises:
        TeacherError: if a row cannot be stored; names the sample.
    """
    if not finite.all():
        bad = shard.rows[~finite]
        raise TeacherError(
            f"the teacher gives inf, nan or a value beyond the codec's range for view "
            f"{shard.view} of {describe_sample(beton, int(bad[0]))}, {len(bad)} samples of this "
            "shard, expected finite logits. Try --precision fp32 and --codec float32, or check the "
            "weights"
        )


class DevicePipeline(NamedTuple):
    """Maps pixels on the host to outputs on the host."""

    forward: Forward
    to_device: ToDevice
    to_host: ToHost
    after_batch: Callable[[], None]


def _batches(block: Shard, beton: Beton, size: int) -> list[npt.NDArray[np.int64]]:
    """Return the positions in the beton, one array per batch of a block; the last is padded.

    All forwards have one shape, so a resumed build writes the same bytes.
    """
    positions = beton.positions(block.rows)
    padded = np.concatenate([positions, np.repeat(positions[-1:], -len(positions) % size)])
    return np.split(padded, len(padded) // size)


def _block_outputs(
    block: Shard,
    numbers: list[int],
    read: Iterator[list[PixelBatch]],
    beton: Beton,
    size: int,
    pipeline: DevicePipeline,
    bar: tqdm,
) -> Iterator[TeacherOutputs]:
    count = len(block.rows)
    logits = {view: pipeline.to_host.empty(count, pipeline.forward.num_classes) for view in numbers}
    features: Tensor | None = None
    for start in range(0, count, size):
        end = min(start + size, count)
        for view, pixels in zip(numbers, next(read), strict=True):
            batch_logits = run_forward(pipeline.forward, pipeline.to_device(pixels.images))
            pipeline.to_host(batch_logits[: end - start], logits[view][start:end])
            batch_features = pipeline.forward.features
            if view == 0 and batch_features is not None:
                if features is None:
                    features = pipeline.to_host.empty(count, batch_features.shape[1])
                pipeline.to_host(batch_features[: end - start], features[start:end])
            bar.update(end - start)
        pipeline.after_batch()
    wait = pipeline.to_host.wait_function()
    positions = beton.positions(block.rows)
    labels = torch.from_numpy(beton.labels[positions])
    keys = beton.view_keys[positions]
    for view in numbers:
        shard = replace(block, view=view)
        kept = features if view == 0 else None
        yield TeacherOutputs(shard, logits[view], labels, keys, kept, wait)
