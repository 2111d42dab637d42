"""The learning rate of each step: torch's schedulers, composed, and what of them moves."""

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
"""Share of all steps in which the one-cycle schedule rises, when the user does not say."""

MILESTONES = (0.5, 0.75)
"""Of the step schedule, likewise, as in the recipe of CIFAR's ResNets (He et al. 2016)."""

GAMMA = 0.1
"""Likewise."""

_MOVING = ("last_epoch", "_step_count", "_last_lr")
"""All that changes in a torch scheduler while it is stepped; the rest follows from the settings."""


def make_schedule(optimizer: Optimizer, settings: OptimSettings, *, steps: int) -> LRScheduler:
    """Return a schedule with one value per step, whose highest is the settings' rate.

    `one-cycle` rises from a 25th of the rate and falls to nearly 0, both as a cosine; the others
    rise linearly for the share `warmup` of all steps, where one is given, and then fall to 0 as a
    cosine, by steps, or not at all.

    Args:
        optimizer: whose rate is set.
        settings: of schedule and rate.
        steps: of the whole run.

    References:
        Smith, Topin 2017, "Super-Convergence" (one cycle); Loshchilov, Hutter 2017, "SGDR"
        (cosine, without restarts).
    """
    if settings.schedule == "one-cycle":
        share = ONE_CYCLE_WARM_UP if settings.warmup is None else settings.warmup
        total = max(steps, 2)
        if share * total == 1:
            share *= 1 - 1e-9  # torch divides by zero where the warm-up is exactly one step
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
    """Return what of a schedule moves, as JSON content."""
    return _moving_part(schedule.state_dict())


def load_schedule(schedule: LRScheduler, state: dict[str, Any]) -> None:
    """Take up the state of a schedule that was made from the same settings."""
    schedule.load_state_dict(state)


def _moving_part(state: dict[str, Any]) -> dict[str, Any]:
    moving = {name: state[name] for name in _MOVING if name in state}
    if "_schedulers" in state:
        moving["_schedulers"] = [_moving_part(inner) for inner in state["_schedulers"]]
    return moving
