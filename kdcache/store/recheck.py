"""The teacher asked again about a random sample of rows: does the store hold its answers?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kdcache.data.beton import Beton
from kdcache.options import Precision
from kdcache.rng import generator
from kdcache.store.codecs.dense import Dense, Float32
from kdcache.store.logit_store import LogitStore
from kdcache.store.plan import Shard
from kdcache.store.teacher_pass import run_teacher
from kdcache.teacher.forward import TeacherForward

ROUNDING: dict[Precision, float] = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 2e-2, "bf16": 1e-1}
"""How far the same teacher's logits may differ between two runs, as a share of the largest centred
logit: sums are cut into other batches and rounded elsewhere. A few hundred units in the last place
of each precision."""


class Recheck(NamedTuple):
    """What asking again found."""

    rows: int
    """Compared, over all views."""
    largest_difference: float
    """Between stored and new centred logits, of the views whose codec keeps every logit."""
    bound: float
    """Expected of it: rounding of the precision, and of float16."""
    differing: int
    """Rows whose stored answer is not the new one within the bound; of views under a codec that
    keeps less, compared after the same encoding."""


def recheck(
    store: LogitStore, beton: Beton, forward: TeacherForward, *, rows: int, seed: int
) -> Recheck:
    """Ask the teacher about `rows` random rows of each view and compare.

    Args:
        store: whose rows are checked.
        beton: the training images.
        forward: the teacher, at the store's precision.
        rows: of each view; all where it has fewer.
        seed: of the draw.
    """
    work = []
    for view in range(store.num_views + 1):
        ids = store.sample_ids if view else np.arange(store.manifest.samples)
        drawn = generator(seed, "recheck", view).choice(ids, min(rows, len(ids)), replace=False)
        work.append(Shard(view, 0, np.sort(drawn)))
    largest, bound, differing, compared = 0.0, 0.0, 0, 0
    for answers in run_teacher(
        forward,
        work,
        beton,
        store.manifest.views,
        batch_size=store.manifest.batch_size,
        num_workers=None,
    ):
        view, ids = answers.shard.view, answers.shard.rows
        codec = store.codec_of(view)
        stored = store.logits(ids, view)
        new = answers.logits.cpu().numpy()
        if not isinstance(codec, (Dense, Float32)):
            new = codec.decode(codec.encode(new, sample_ids=ids, view=view))
        centred = _centred(new)
        scale = float(np.abs(centred).max(initial=0.0))
        allowed = scale * (ROUNDING[store.manifest.precision] + 2.0**-11)
        difference = np.abs(_centred(stored) - centred).max(axis=1)
        differing += int((difference > allowed).sum())
        compared += len(ids)
        if isinstance(codec, (Dense, Float32)):
            largest = max(largest, float(difference.max(initial=0.0)))
            bound = max(bound, allowed)
    return Recheck(compared, largest, bound, differing)


def _centred(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    return np.asarray(wide - wide.mean(axis=1, keepdims=True))
