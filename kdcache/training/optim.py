"""The optimiser, what of a model decays, and what they are when the user does not say."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kdcache.models.registry import CIFAR_MODELS
from kdcache.options import Optimizer, Schedule

MOMENTUM = 0.9

WEIGHT_DECAY: dict[Optimizer, float] = {"sgd": 5e-4, "adamw": 0.05}
"""As in the CIFAR recipes of the literature; AdamW's does not scale with the gradient."""

_LR_PER_128 = 0.1
"""Of the CIFAR models."""

_LARGE_MODEL_LR_PER_128 = 0.02
"""Of ImageNet's models: on small sets they do not recover from first steps at a higher rate."""

_ADAMW_LR_PER_128 = 1e-3
"""AdamW's own default."""

_SMALL_SET = 5_000


@dataclass(frozen=True, kw_only=True)
class OptimSettings:
    """The optimiser and its learning rate."""

    optimizer: Optimizer = "sgd"
    lr: float
    """Peak learning rate."""
    momentum: float = MOMENTUM
    """Of SGD, in [0, 1)."""
    weight_decay: float = WEIGHT_DECAY["sgd"]
    schedule: Schedule = "one-cycle"
    warmup: float | None = None
    """Share of all steps in which the rate rises; the schedule's own when None."""
    milestones: tuple[float, ...] = ()
    """Of `step`: shares of all steps after which the rate falls."""
    gamma: float | None = None
    """Of `step`: factor of each fall."""


def make_optimizer(model: nn.Module, settings: OptimSettings) -> torch.optim.Optimizer:
    """Return SGD with Nesterov momentum, or AdamW.

    Weight decay is for matrices and filters: parameters of at least two dimensions that are called
    weights. Norms, biases, position embeddings and class tokens have none.
    """
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_weight = parameter.ndim > 1 and name.endswith("weight")
        (decayed if is_weight else others).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr)
    # torch knows no Nesterov step without momentum.
    return torch.optim.SGD(
        groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0
    )


def default_batch_size(num_samples: int) -> int:
    """Return 128, or 32 for small sets, which need steps."""
    return 32 if num_samples < _SMALL_SET else 128


def default_lr(samples_per_step: int, model_name: str, optimizer: Optimizer = "sgd") -> float:
    """Return a peak rate in proportion to the samples of a step."""
    if optimizer == "adamw":
        return _ADAMW_LR_PER_128 * samples_per_step / 128
    per_128 = _LR_PER_128 if model_name in CIFAR_MODELS else _LARGE_MODEL_LR_PER_128
    return per_128 * samples_per_step / 128


def default_epochs(steps_per_epoch: int, *, min_epochs: int, min_steps: int) -> int:
    """Return the epochs that give a small set enough steps too."""
    return max(min_epochs, math.ceil(min_steps / steps_per_epoch))
