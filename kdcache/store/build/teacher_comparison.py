"""The teacher asked again about a random sample of rows: does the store hold its answers?"""

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
"""Of `dense`, as a share of a logit; none is further from its row's mean than the row's range."""


class TeacherComparison(NamedTuple):
    """What asking again found."""

    rows: int
    """Compared, over all views."""
    largest_difference: float
    """Between stored and new centred logits, as a share of the row's range; of the views whose
    codec keeps every logit."""
    bound: float
    """Expected of it: `kdcache.teacher.tolerance.TOLERANCES`, and the rounding of float16."""
    num_mismatched: int
    """Rows whose stored answer is not the new one within the bound; of views under a codec that
    keeps less, compared after the same encoding."""


def compare_rows(
    store: LogitStore,
    beton: Beton,
    forward: Forward,
    *,
    rows: int,
    seed: int,
    num_workers: int | None = None,
) -> TeacherComparison:
    """Ask the teacher about `rows` random rows of each view and compare.

    Args:
        store: whose rows are checked.
        beton: the training images.
        forward: the teacher, at the store's precision.
        rows: of each view; all where it has fewer.
        seed: of the draw.
        num_workers: threads that read and decode; all cores when left out.
    """
    work = []
    for view in range(store.num_views + 1):
        ids = store.sample_ids if view else np.arange(store.manifest.samples)
        drawn = generator(seed, "recheck", view).choice(ids, min(rows, len(ids)), replace=False)
        work.append(Shard(view, 0, np.sort(drawn)))
    bound = TOLERANCES[store.manifest.precision] + FLOAT16_ROUNDING
    largest, num_mismatched, compared = 0.0, 0, 0
    for answers in run_teacher(
        forward,
        work,
        beton,
        store.manifest.teacher_views,
        batch_size=store.manifest.batch_size,
        num_workers=num_workers,
    ):
        answers.wait()
        view, ids = answers.shard.view, answers.shard.rows
        codec = store.codec_of(view)
        new = answers.logits.numpy()
        if not isinstance(codec, (Dense, Float32)):
            new = codec.decode(codec.encode(new, sample_ids=ids, view=view))
        found = relative_differences(store.logits(ids, view), new)
        num_mismatched += int((found > bound).sum())
        compared += len(ids)
        if isinstance(codec, (Dense, Float32)):
            largest = max(largest, float(found.max(initial=0.0)))
    return TeacherComparison(compared, largest, bound, num_mismatched)
