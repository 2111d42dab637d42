"""The teacher over blocks of rows: pixels in, the answers of one shard after the other out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
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
from kdcache.reader.batches import PixelReader
from kdcache.store.plan import Shard, view_groups
from kdcache.teacher.forward import TeacherForward


class Answers(NamedTuple):
    """What the teacher says of one shard, on its device."""

    shard: Shard
    logits: Tensor
    """(n, C) float32."""
    labels: Tensor
    """(n,) int64."""
    features: Tensor | None
    """(n, F) float32 penultimate activations, of view 0 where they are kept."""


def rehearse(forward: TeacherForward, beton: Beton, views: Views, batch_size: int) -> int | None:
    """Ask the teacher about one batch of the clean view, before a store is made or replaced.

    Returns:
        F, the width of its features; None where they are not kept.

    Raises:
        TeacherError: if its answers cannot be stored.
    """
    positions = np.arange(len(beton))[:batch_size]
    reader = PixelReader(beton, views, batch_size=batch_size, num_workers=1)
    with closing(reader.read([positions], 0)) as batches:  # type: ignore[type-var]
        logits = forward(next(iter(batches)).images)
    finite = torch.isfinite(logits).all(dim=1).cpu().numpy()
    require_finite(finite, Shard(0, 0, beton.sample_ids[positions]))
    return None if forward.features is None else forward.features.shape[1]


def run_teacher(
    forward: TeacherForward,
    work: list[Shard],
    beton: Beton,
    views: Views,
    *,
    batch_size: int,
    num_workers: int | None,
) -> Iterator[Answers]:
    """Yield the answers of every shard; views of the same rows come from one decoding."""
    groups = view_groups(work)
    reader = PixelReader(
        beton,
        views,
        batch_size=batch_size,
        num_workers=num_workers,
        views_per_sample=max(len(numbers) for _, numbers in groups),
    )
    total = sum(len(shard.rows) for shard in work)
    with progress_bar(total=total, unit="image", description="teacher") as bar:
        for block, numbers in groups:
            yield from _answers(block, numbers, reader, forward, bar)


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


def _answers(
    block: Shard, numbers: list[int], reader: PixelReader, forward: TeacherForward, bar: tqdm
) -> Iterator[Answers]:
    size = reader.batch_size
    positions = reader.beton.positions(block.rows)
    count = len(positions)
    # The last batch is padded: every forward has one shape, so resumed bytes are equal bytes.
    padded = np.concatenate([positions, np.repeat(positions[-1:], -count % size)])
    batches: list[npt.NDArray[np.int64]] = np.split(padded, len(padded) // size)
    logits: list[list[Tensor]] = [[] for _ in numbers]
    features: list[Tensor] = []
    labels: list[Tensor] = []
    # Closed here: where the teacher fails, the error would keep the reader's thread alive.
    with closing(reader.read_views(batches, numbers)) as batches_read:  # type: ignore[type-var]
        for number, pixels in enumerate(batches_read):
            real = min(size, count - number * size)
            labels.append(pixels[0].labels[:real])
            for view, answers, seen in zip(numbers, logits, pixels, strict=True):
                answers.append(forward(seen.images)[:real].clone())
                if view == 0 and forward.features is not None:
                    features.append(forward.features[:real].clone())
                bar.update(real)
    for view, answers in zip(numbers, logits, strict=True):
        yield Answers(
            block._replace(view=view),
            torch.cat(answers),
            torch.cat(labels).to(forward.device),
            torch.cat(features) if view == 0 and features else None,
        )
