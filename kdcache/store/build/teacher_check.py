"""Measure the teacher's accuracy on our pixels, which reveals wrong preprocessing.

The evaluation split is read with the student's reader. The clean view of the training data is
measured from the stored rows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from kdcache.compute.figures import Quality
from kdcache.compute.quality import QualityMeter, measure_quality
from kdcache.errors import CacheMismatchError
from kdcache.progress import logger
from kdcache.reader.batches import PixelReader
from kdcache.store.logit_store import LogitStore
from kdcache.teacher.ensemble import Forward

MAX_TOP1_SHORTFALL = 1.0
"""Percentage points of top-1 that the teacher may stay below its reported value."""

ROWS_PER_CHUNK = 1 << 14


def check_teacher(
    store: LogitStore, forward: Forward, val: Path, *, reported_top1: float | None
) -> tuple[Quality, Quality | None]:
    """Measure the teacher, and warn if it is worse than reported.

    Args:
        store: finished store of this teacher.
        forward: the teacher.
        val: path of the evaluation beton; it need not exist.
        reported_top1: reported top-1 on the evaluation split, in percent, or None.

    Returns:
        The quality on the clean view of the training data, and on the evaluation split if there is
        one.

    Raises:
        CacheMismatchError: if the evaluation split has other classes.
    """
    train = _clean_view_quality(store)
    _log_quality("training data, clean view", train)
    if not val.exists():
        return train, None
    reader = PixelReader(val, store.manifest.teacher_views, batch_size=store.manifest.batch_size)
    if reader.beton.manifest.class_names != store.manifest.class_names:
        raise CacheMismatchError(
            f"{val} has other classes than {store.path}, expected the same names in the same order"
        )
    found = measure_quality(forward, reader, forward.device)
    _log_quality("evaluation split", found)
    if reported_top1 is not None and found.top1 < reported_top1 - MAX_TOP1_SHORTFALL:
        logger.warning(
            "the teacher reaches %.2f %% on the evaluation split, but %.2f %% was reported: "
            "normalisation, image size or class order may differ",
            found.top1,
            reported_top1,
        )
    return train, found


def _clean_view_quality(store: LogitStore) -> Quality:
    meter = QualityMeter()
    ids = np.arange(store.manifest.samples)
    for part in np.split(ids, range(ROWS_PER_CHUNK, len(ids), ROWS_PER_CHUNK)):
        logits = torch.from_numpy(store.logits(part, 0))
        meter.add(logits, torch.from_numpy(store.labels[part]))
    return meter.result()


def _log_quality(where: str, found: Quality) -> None:
    logger.info(
        "teacher on the %s: top-1 %.2f %%, top-5 %.2f %%, NLL %.3f, calibration error %.3f",
        where,
        *found,
    )
