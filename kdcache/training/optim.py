"""Optimiser, schedule, and what they are when the user does not say."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from kdcache.teacher.models import CIFAR_MODELS

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
"""As in the CIFAR recipes of the literature."""

WARM_UP_SHARE = 0.15
"""Share of all steps in which the learning rate rises."""

_LR_PER_128 = 0.1
"""Of the CIFAR models."""

_LARGE_MODEL_LR_PER_128 = 0.02
"""Of ImageNet's models: on small sets they do not recover from first steps at a higher rate."""

_SMALL_SET = 5_000


def make_optimizer(model: nn.Module, *, lr: float) -> torch.optim.SGD:
    """Return SGD with Nesterov momentum; no weight decay on norms and biases."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": others},
    ]
    return torch.optim.SGD(groups, lr=lr, momentum=MOMENTUM, nesterov=True)


def make_schedule(optimizer: torch.optim.Optimizer, *, lr: float, steps: int) -> OneCycleLR:
    """Return a warm-up to `lr` and a cosine back to nearly 0, one value per step."""
    return OneCycleLR(
        optimizer,
        max_lr=lr,
        total_steps=max(steps, 2),
        pct_start=WARM_UP_SHARE,
        cycle_momentum=False,
    )


def default_batch_size(num_samples: int) -> int:
    """Return 128, or 32 for small sets, which need steps."""
    return 32 if num_samples < _SMALL_SET else 128


def default_lr(batch_size: int, model_name: str) -> float:
    """Return a peak rate in proportion to the batch."""
    per_128 = _LR_PER_128 if model_name in CIFAR_MODELS else _LARGE_MODEL_LR_PER_128
    return per_128 * batch_size / 128


def default_epochs(
    num_samples: int, batch_size: int, *, least_epochs: int, least_steps: int
) -> int:
    """Return the epochs that give a small set enough steps too."""
    steps_per_epoch = -(-num_samples // batch_size)
    return max(least_epochs, math.ceil(least_steps / steps_per_epoch))
