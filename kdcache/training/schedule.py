"""Learning-rate schedules built from torch's schedulers, and their state."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    SequentialLR,
)

from kdcache.training.optim import OptimSettings

ONE_CYCLE_WARM_UP = 0.15
"""Default fraction of all steps in which the one-cycle schedule rises."""

MILESTONES = (0.5, 0.75)
"""Default milestones of the step schedule, as fractions of all steps (He et al. 2016, CIFAR)."""

GAMMA = 0.1
"""Default factor of the step schedule."""

_MOVING = ("last_epoch", "_step_count", "_last_lr")
"""The fields of a torch scheduler that change with each step; the settings decide the others."""


def make_schedule(optimizer: Optimizer, settings: OptimSettings, *, steps: int) -> LRScheduler:
    """Return a schedule with one value per step and the peak of the settings.

    `one-cycle` rises from a 25th of the rate and falls to nearly 0, both as a cosine. The others
    rise linearly during the fraction `warmup` of all steps, if it is given, and then fall to 0 as a
    cosine, fall by steps, or stay constant.

    Args:
        optimizer: the optimiser whose rate the schedule sets.
        settings: schedule, rate, warm-up, milestones and gamma.
        steps: optimiser steps of the whole run.

    References:
        Smith, Topin 2017, "Super-Convergence" (one cycle); Loshchilov, Hutter 2017, "SGDR"
        (cosine, without restarts).
    """
    if settings.schedule == "one-cycle":
        share = ONE_CYCLE_WARM_UP if settings.warmup is None else settings.warmup
        total = max(steps, 2)
        if share * total == 1:
            share *= 1 - 1e-9  # torch divides by zero if the warm-up is exactly one step
        return OneCycleLR(
            optimizer,
            max_lr=settings.lr,
            total_steps=total,
            pct_start=share,
            cycle_momentum=False,
        )
    rising = round((settings.warmup or 0.0) * steps)
    if not rising:
        return _after_warm_up(optimizer, settings, steps=steps, rising=0)
    # Step i of the warm-up has (i + 1) / (rising + 1) of the rate, so that the first is not 0.
    warm_up = LinearLR(optimizer, start_factor=1 / (rising + 1), total_iters=rising)
    falling = _after_warm_up(optimizer, settings, steps=steps, rising=rising)
    return SequentialLR(optimizer, [warm_up, falling], milestones=[rising])


def _after_warm_up(
    optimizer: Optimizer, settings: OptimSettings, *, steps: int, rising: int
) -> LRScheduler:
    if settings.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=max(steps - rising, 1))
    if settings.schedule == "constant":
        return ConstantLR(optimizer, factor=1.0)
    shares = settings.milestones or MILESTONES
    return MultiStepLR(
        optimizer,
        milestones=[round(share * steps) - rising for share in shares],
        gamma=GAMMA if settings.gamma is None else settings.gamma,
    )


def schedule_state(schedule: LRScheduler) -> dict[str, Any]:
    """Return the changing part of a schedule's state, as JSON content."""
    return _moving_part(schedule.state_dict())


def load_schedule(schedule: LRScheduler, state: dict[str, Any]) -> None:
    """Restore the state of a schedule with the same settings."""
    schedule.load_state_dict(state)


def _moving_part(state: dict[str, Any]) -> dict[str, Any]:
    moving = {name: state[name] for name in _MOVING if name in state}
    if "_schedulers" in state:
        moving["_schedulers"] = [_moving_part(inner) for inner in state["_schedulers"]]
    return moving
