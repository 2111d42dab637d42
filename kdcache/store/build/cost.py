"""Estimate the cost of a pass before it starts: forwards, time, bytes, break-even epochs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from itertools import chain
from typing import NamedTuple

import numpy as np

from kdcache.data.beton import Beton
from kdcache.data.views import Views
from kdcache.reader.batches import PixelReader
from kdcache.store.build.plan import Shard, view_groups
from kdcache.store.report import PassCost

TIMED_BATCHES = 2
"""Batches that are timed, after a first one in which threads start and code is compiled."""

MINUTE, HOUR = 60.0, 3600.0

MAX_SECONDS_WITH_DECIMALS = 10.0
"""Durations from this on are shown without decimals."""


class Cost(NamedTuple):
    """The expected cost of a teacher pass, or of one part of it."""

    forwards: int
    """Teacher forwards of this part, in images."""
    seconds: float
    """Expected seconds of this part, for decoding and forwards, from warm batches."""
    bytes: int | None
    """Expected bytes of the whole store; None if its codec is not decided yet."""
    break_even_epochs: float
    """Student epochs after which a live teacher has run as many forwards as all parts of this pass:
    forwards divided by the rows of an epoch."""

    def __str__(self) -> str:
        stored = "" if self.bytes is None else f", {self.bytes:,} bytes in the end"
        return (
            f"{self.forwards:,} images through the teacher, about {format_duration(self.seconds)}"
            f"{stored}; a live teacher runs as many forwards in {self.break_even_epochs:.1f} "
            "student epochs, over all runs"
        )

    def report(self, seconds: float) -> PassCost:
        """Return what is reported of it, together with the seconds that the pass took."""
        return PassCost(
            expected_seconds=round(self.seconds, 3),
            seconds=round(seconds, 3),
            expected_bytes=self.bytes,
            break_even_epochs=round(self.break_even_epochs, 3),
        )


def expected_seconds(
    passes: Sequence[list[Shard]],
    forward_seconds: float,
    *,
    beton: Beton,
    views: Views,
    batch_size: int,
    num_workers: int | None,
    overlaps: bool,
) -> float:
    """Return the expected seconds of a teacher pass.

    The function measures decoding on images from all over the beton, for the smallest and the
    largest number of views that are decoded together, and interpolates between the two.

    Args:
        passes: shards per pass over the images.
        forward_seconds: seconds of the forward of one batch.
        beton: the training images.
        views: policy, seed and image size.
        batch_size: images per forward.
        num_workers: threads that decode.
        overlaps: True if another device computes while the CPU decodes.
    """
    batches: Counter[int] = Counter()
    examples: dict[int, list[int]] = {}
    for block, numbers in chain.from_iterable(map(view_groups, passes)):
        batches[len(numbers)] += -(-len(block.rows) // batch_size)
        examples[len(numbers)] = numbers
    counts = sorted({min(batches), max(batches)})
    measured = [
        _decoding_seconds(beton, views, batch_size, examples[count], num_workers)
        for count in counts
    ]
    total = 0.0
    for count, number in batches.items():
        decoding = float(np.interp(count, counts, measured))
        computing = count * forward_seconds
        total += number * (max(decoding, computing) if overlaps else decoding + computing)
    return total


def _decoding_seconds(
    beton: Beton, views: Views, batch_size: int, numbers: list[int], num_workers: int | None
) -> float:
    """Return the seconds that a warm reader takes to decode one batch in these views."""
    reader = PixelReader(
        beton,
        views,
        batch_size=batch_size,
        num_workers=num_workers,
        views_per_sample=len(numbers),
    )
    count = (1 + TIMED_BATCHES) * batch_size
    spread = np.linspace(0, len(beton) - 1, count).astype(np.int64)
    # A batch takes images at regular distances, so that it covers the whole beton.
    batches = list(spread.reshape(batch_size, -1).T)
    started = 0.0
    with closing(reader.read_views(batches, numbers)) as read:  # type: ignore[type-var]
        for number, _ in enumerate(read):
            if number == 0:
                started = time.perf_counter()
        return (time.perf_counter() - started) / TIMED_BATCHES


def format_duration(seconds: float) -> str:
    """Return a readable duration: 40 s, 12 min, 3.4 h."""
    if seconds < 2 * MINUTE:
        return f"{seconds:.2g} s" if seconds < MAX_SECONDS_WITH_DECIMALS else f"{seconds:.0f} s"
    return f"{seconds / MINUTE:.0f} min" if seconds < 2 * HOUR else f"{seconds / HOUR:.1f} h"
