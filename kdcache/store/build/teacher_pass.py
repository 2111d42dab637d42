"""The teacher over blocks of rows: pixels in, the answers of one shard after the other out."""

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
from kdcache.data.views import Views
from kdcache.errors import TeacherError
from kdcache.progress import progress_bar
from kdcache.reader.batches import PixelReader, Pixels
from kdcache.store.build.plan import Shard, view_groups
from kdcache.teacher.ensemble import Forward
from kdcache.teacher.out_of_memory import run_forward
from kdcache.teacher.pinned_copies import ToDevice, ToHost


class TeacherOutputs(NamedTuple):
    """What the teacher says of one shard, on the host."""

    shard: Shard
    logits: Tensor
    """(n, C) float32."""
    labels: Tensor
    """(n,) int64."""
    features: Tensor | None
    """(n, F) float32 penultimate activations, of view 0 where they are kept."""
    wait: Callable[[], None]
    """Waits until logits and features are there: call it first, in any thread."""


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
    """Yield the answers of every shard; views of the same rows come from one decoding.

    Args:
        forward: the teacher.
        work: the shards to make.
        beton: the training images.
        views: policy, seed and image size.
        batch_size: images of each forward.
        num_workers: threads that read and decode.
        after_batch: called after each batch; what it raises ends the pass.

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
        # A teacher on the CPU has all cores: what is decoded beside it makes its threads wait.
        batches_ahead=0 if forward.device.type == "cpu" else 2,
        views_per_sample=max(len(numbers) for _, numbers in groups),
    )
    pipeline = DevicePipeline(
        forward, ToDevice(forward.device), ToHost(forward.device), after_batch
    )
    total = sum(len(shard.rows) for shard in work)
    with progress_bar(total=total, unit="image", description="teacher") as bar:
        # Read without a gap from block to block, as long as it is the same views.
        for numbers, of_group in groupby(groups, key=lambda group: group[1]):
            blocks = [block for block, _ in of_group]
            batches = [batch for block in blocks for batch in _batches(block, beton, batch_size)]
            # Closed here: where the teacher fails, the error would keep the reader's thread alive.
            with closing(reader.read_views(batches, numbers)) as read:  # type: ignore[type-var]
                for block in blocks:
                    yield from _answers(block, numbers, read, beton, batch_size, pipeline, bar)


def require_finite(finite: npt.NDArray[np.bool_], shard: Shard) -> None:
    """Check that a shard can be stored.

    Args:
        finite: (n,) whether each row can be.
        shard: whose rows they are.

    Raises:
        TeacherError: if one cannot; names the sample.
    """
    if not finite.all():
        bad = shard.rows[~finite]
        raise TeacherError(
            f"the teacher answers view {shard.view} of sample {bad[0]} with inf, nan or a value "
            f"beyond the codec's range ({len(bad)} samples of this shard), expected finite "
            "logits. Try --precision fp32 and --codec float32, or look at the weights"
        )


class DevicePipeline(NamedTuple):
    """From pixels on the host to answers on the host."""

    forward: Forward
    to_device: ToDevice
    to_host: ToHost
    after_batch: Callable[[], None]


def _batches(block: Shard, beton: Beton, size: int) -> list[npt.NDArray[np.int64]]:
    """Return the positions of each batch of a block; the last is padded.

    Every forward has one shape, so resumed bytes are equal bytes.
    """
    positions = beton.positions(block.rows)
    padded = np.concatenate([positions, np.repeat(positions[-1:], -len(positions) % size)])
    return np.split(padded, len(padded) // size)


def _answers(
    block: Shard,
    numbers: list[int],
    read: Iterator[list[Pixels]],
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
            answer = run_forward(pipeline.forward, pipeline.to_device(pixels.images))
            pipeline.to_host(answer[: end - start], logits[view][start:end])
            seen = pipeline.forward.features
            if view == 0 and seen is not None:
                if features is None:
                    features = pipeline.to_host.empty(count, seen.shape[1])
                pipeline.to_host(seen[: end - start], features[start:end])
            bar.update(end - start)
        pipeline.after_batch()
    wait = pipeline.to_host.wait_function()
    labels = torch.from_numpy(beton.labels[beton.positions(block.rows)])
    for view in numbers:
        shard = replace(block, view=view)
        yield TeacherOutputs(shard, logits[view], labels, features if view == 0 else None, wait)
