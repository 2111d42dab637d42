"""What a pass will cost, told before it starts: forwards, time, bytes, and when it has paid."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from kdcache.data.beton import Beton
from kdcache.data.views import Views
from kdcache.reader.batches import PixelReader
from kdcache.store.build.plan import Shard, view_groups

TIMED_BATCHES = 2
"""After a first one, during which threads start and code is compiled."""

MINUTE, HOUR = 60.0, 3600.0

MAX_SECONDS_WITH_DECIMALS = 10.0
"""Seconds; above, nobody wants a decimal."""


class Cost(NamedTuple):
    """Of a pass of the teacher, or of one part of it."""

    forwards: int
    """Images through the teacher, of this part."""
    seconds: float
    """Expected of this part: decoding and forwards, as measured on a warm batch."""
    bytes: int | None
    """Of the whole store; None where its codec is still to be decided."""
    break_even_epochs: float
    """Epochs of students after which a teacher in the loop would have made as many forwards as all
    parts of this pass: forwards over the rows of an epoch."""

    def __str__(self) -> str:
        stored = "" if self.bytes is None else f", {self.bytes:,} bytes in the end"
        return (
            f"{self.forwards:,} images through the teacher, about {format_duration(self.seconds)}"
            f"{stored}; paid for after {self.break_even_epochs:.1f} student epochs, over all runs, "
            "in which a live teacher would see as many"
        )

    def beside(self, seconds: float) -> dict[str, Any]:
        """Return it as JSON content, beside the seconds that the pass took."""
        return {
            "expected_seconds": round(self.seconds, 3),
            "seconds": round(seconds, 3),
            "expected_bytes": self.bytes,
            "break_even_epochs": round(self.break_even_epochs, 3),
        }


def expected_seconds(
    passes: Sequence[list[Shard]],
    forward_seconds: float,
    *,
    beton: Beton,
    views: Views,
    batch_size: int,
    num_workers: int | None,
    together: bool,
) -> float:
    """Return how long the teacher will take for some shards.

    Decoding is measured here, on images from all over the beton, for the fewest and the most views
    that are decoded together.

    Args:
        passes: the shards of each pass over the images.
        forward_seconds: of one batch.
        beton: the training images.
        views: policy, seed and image size.
        batch_size: images of each forward.
        num_workers: threads that decode.
        together: another device computes while this one decodes.
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
        answering = count * forward_seconds
        total += number * (max(decoding, answering) if together else decoding + answering)
    return total


def _decoding_seconds(
    beton: Beton, views: Views, batch_size: int, numbers: list[int], num_workers: int | None
) -> float:
    """Return the seconds that one batch takes in these views, warm."""
    reader = PixelReader(
        beton,
        views,
        batch_size=batch_size,
        num_workers=num_workers,
        views_per_sample=len(numbers),
    )
    count = (1 + TIMED_BATCHES) * batch_size
    spread = np.linspace(0, len(beton) - 1, count).astype(np.int64)
    # One column of each: every batch is from all over the beton.
    batches = list(spread.reshape(batch_size, -1).T)
    started = 0.0
    with closing(reader.read_views(batches, numbers)) as read:  # type: ignore[type-var]
        for number, _ in enumerate(read):
            if number == 0:
                started = time.perf_counter()
        return (time.perf_counter() - started) / TIMED_BATCHES


def format_duration(seconds: float) -> str:
    """Return a time for people: 40 s, 12 min, 3.4 h."""
    if seconds < 2 * MINUTE:
        return f"{seconds:.2g} s" if seconds < MAX_SECONDS_WITH_DECIMALS else f"{seconds:.0f} s"
    return f"{seconds / MINUTE:.0f} min" if seconds < 2 * HOUR else f"{seconds / HOUR:.1f} h"
