"""Train several students that differ only in their seed; report mean and spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from kdcache.options import TrainOptions
from kdcache.progress import logger

SUMMARISED = ("top1", "top1_best", "top5", "top1_ema")


def train_seeds(
    train_one: Callable[[TrainOptions], dict[str, Any]], options: TrainOptions
) -> dict[str, Any]:
    """Train one student after the other, each in a run folder of its own.

    Args:
        train_one: trains one student in a new folder or in `out`; with `resume` it also starts a
            run that does not exist yet.
        options: trains `seeds` students, from `seed` on; `out` is the parent of their folders.

    Returns:
        `seeds`; `top1`, `top1_best`, `top5` and `top1_ema`, each with `mean` and `std` (of the
        sample, divisor n - 1) in percent, or None if nothing was evaluated; `seconds`; `runs`,
        the result of each.
    """
    started = time.perf_counter()
    seeds = list(range(options.seed, options.seed + options.seeds))
    runs = []
    for number, seed in enumerate(seeds, start=1):
        out = None if options.out is None else options.out / f"s{seed}"
        runs.append(train_one(replace(options, seed=seed, out=out)))
        top1 = runs[-1]["top1"]
        logger.info(
            "seed %d (%d of %d): top-1 %s -> %s",
            seed,
            number,
            len(seeds),
            "-" if top1 is None else f"{top1:.2f} %",
            runs[-1]["path"],
        )
    return {
        "seeds": seeds,
        **{name: _mean_and_spread([run[name] for run in runs]) for name in SUMMARISED},
        "seconds": round(time.perf_counter() - started, 3),
        "runs": runs,
    }


def _mean_and_spread(values: list[float | None]) -> dict[str, float] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {"mean": statistics.mean(known), "std": statistics.stdev(known)}
