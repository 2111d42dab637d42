"""How good the teacher is on our pixels: wrong preprocessing shows at once.

Measured through the reader that the student uses, on the evaluation split and, from the rows that
are stored already, on the clean view of the training data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdcache.compute.quality import Quality, QualityMeter, measure_quality
from kdcache.errors import CacheMismatchError
from kdcache.progress import logger
from kdcache.reader.batches import PixelReader
from kdcache.store.logit_store import LogitStore
from kdcache.teacher.ensemble import Forward

MAX_TOP1_SHORTFALL = 1.0
"""Points of top-1 below what the teacher's file says that are no reason to warn."""

ROWS_PER_CHUNK = 1 << 14


def check_teacher(
    store: LogitStore, forward: Forward, val: Path, *, reported_top1: float | None
) -> dict[str, Any]:
    """Measure the teacher and warn where it is worse than its file says.

    Args:
        store: finished, of this teacher.
        forward: the teacher.
        val: the evaluation beton; it need not exist.
        reported_top1: percent of the evaluation split, where it is known.

    Returns:
        `train` and `val` (None without an evaluation split), each a `Quality` as a dict.

    Raises:
        CacheMismatchError: if the evaluation split has other classes.
    """
    train = _clean_view_quality(store)
    _log_quality("training data, clean view", train)
    if not val.exists():
        return {"train": train._asdict(), "val": None}
    reader = PixelReader(val, store.manifest.teacher_views, batch_size=store.manifest.batch_size)
    if reader.beton.manifest.class_names != store.manifest.class_names:
        raise CacheMismatchError(
            f"{val} has other classes than {store.path}, expected the same names in the same order"
        )
    found = measure_quality(forward, reader, forward.device)
    _log_quality("evaluation split", found)
    if reported_top1 is not None and found.top1 < reported_top1 - MAX_TOP1_SHORTFALL:
        logger.warning(
            "the teacher reaches %.2f %% on the evaluation split, but its file says %.2f %%: "
            "normalisation, image size or the order of the classes may be another here",
            found.top1,
            reported_top1,
        )
    return {"train": train._asdict(), "val": found._asdict()}


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
