"""Train several students that differ only in their seed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from kdcache.options import TrainOptions
from kdcache.progress import logger
from kdcache.training.results import RunResult, TrainResult


def train_seeds(
    train_one: Callable[[TrainOptions], RunResult], options: TrainOptions
) -> TrainResult:
    """Train one student after the other, each in its own run folder.

    Args:
        train_one: trains one student in a new folder or in `out`; with `resume` it also starts a
            run that does not exist yet.
        options: trains `seeds` students, from `seed` on. For several, `out` is the parent of their
            folders.
    """
    started = time.perf_counter()
    seeds = tuple(range(options.seed, options.seed + options.seeds))
    if len(seeds) == 1:
        runs = [train_one(options)]
        return TrainResult(runs=tuple(runs), seeds=seeds, seconds=runs[0].seconds)
    runs = []
    for number, seed in enumerate(seeds, start=1):
        out = None if options.out is None else Path(options.out) / f"s{seed}"
        runs.append(train_one(replace(options, seed=seed, out=out)))
        top1 = runs[-1].top1
        logger.info(
            "seed %d (%d of %d): top-1 %s -> %s",
            seed,
            number,
            len(seeds),
            "-" if top1 is None else f"{top1:.2f} %",
            runs[-1].path,
        )
    seconds = round(time.perf_counter() - started, 3)
    return TrainResult(runs=tuple(runs), seeds=seeds, seconds=seconds)
