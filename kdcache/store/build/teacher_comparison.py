"""Compare random rows of a store with the logits that its teacher gives now."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kdcache.data.beton import Beton
from kdcache.rng import generator
from kdcache.store.build.plan import Shard
from kdcache.store.build.teacher_pass import run_teacher
from kdcache.store.codecs.dense import Dense, Float32
from kdcache.store.logit_store import LogitStore
from kdcache.teacher.ensemble import Forward
from kdcache.teacher.tolerance import TOLERANCES, relative_differences

FLOAT16_ROUNDING = 2.0**-11
"""Relative rounding error of `dense`. No centred logit is larger than the range of its row."""


class TeacherComparison(NamedTuple):
    """The result of a comparison."""

    rows: int
    """Compared rows, over all views."""
    largest_difference: float
    """Largest difference of stored and new centred logits, as a fraction of the row's range, over
    the views whose codec keeps every logit."""
    bound: float
    """Largest allowed difference: `kdcache.teacher.tolerance.TOLERANCES` plus float16 rounding."""
    num_mismatched: int
    """Rows that differ by more than the bound. For a codec that drops logits, the new logits are
    encoded before the comparison."""


def compare_rows(
    store: LogitStore,
    beton: Beton,
    forward: Forward,
    *,
    rows: int,
    seed: int,
    num_workers: int | None = None,
) -> TeacherComparison:
    """Run the teacher on `rows` random rows per view, and compare its logits.

    Args:
        store: the store to check.
        beton: the training images.
        forward: the teacher, at the store's precision.
        rows: rows per view; all if the view has fewer.
        seed: seed of the random rows.
        num_workers: threads that read and decode; all cores if None.
    """
    work = []
    for view in range(store.num_views + 1):
        ids = store.sample_ids if view else np.arange(store.manifest.samples)
        drawn = generator(seed, "recheck", view).choice(ids, min(rows, len(ids)), replace=False)
        work.append(Shard(view, 0, np.sort(drawn)))
    bound = TOLERANCES[store.manifest.precision] + FLOAT16_ROUNDING
    largest, num_mismatched, compared = 0.0, 0, 0
    for outputs in run_teacher(
        forward,
        work,
        beton,
        store.manifest.teacher_views,
        batch_size=store.manifest.batch_size,
        num_workers=num_workers,
    ):
        outputs.wait()
        view, ids = outputs.shard.view, outputs.shard.rows
        codec = store.codec_of(view)
        new = outputs.logits.numpy()
        if not isinstance(codec, (Dense, Float32)):
            new = codec.decode(codec.encode(new, view_keys=outputs.view_keys, view=view))
        found = relative_differences(store.logits(ids, view), new)
        num_mismatched += int((found > bound).sum())
        compared += len(ids)
        if isinstance(codec, (Dense, Float32)):
            largest = max(largest, float(found.max(initial=0.0)))
    return TeacherComparison(compared, largest, bound, num_mismatched)
