"""The optimiser, its parameter groups, and its default values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kdcache.models.cifar_models import CIFAR_MODELS
from kdcache.options import Optimizer, Schedule

MOMENTUM = 0.9

WEIGHT_DECAY: dict[Optimizer, float] = {"sgd": 5e-4, "adamw": 0.05}
"""SGD: as in the CIFAR recipes of the literature. AdamW applies its decay apart from the gradient,
so its value is not comparable."""

_LR_PER_128 = 0.1
"""Default of the CIFAR models, for 128 samples per step."""

_LARGE_MODEL_LR_PER_128 = 0.02
"""Default of ImageNet models; on small sets, a higher one ruins their first steps."""

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
    """Momentum of SGD, in [0, 1)."""
    weight_decay: float = WEIGHT_DECAY["sgd"]
    schedule: Schedule = "one-cycle"
    warmup: float | None = None
    """Fraction of all steps in which the rate rises; None for the schedule's default."""
    milestones: tuple[float, ...] = ()
    """Fractions of all steps after which the rate of `step` falls."""
    gamma: float | None = None
    """Factor by which the rate of `step` falls."""


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
    # torch refuses Nesterov without momentum.
    return torch.optim.SGD(
        groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0
    )


def default_batch_size(num_samples: int) -> int:
    """Return 128, or 32 for small sets, which need more steps."""
    return 32 if num_samples < _SMALL_SET else 128


def default_lr(samples_per_step: int, model_name: str, optimizer: Optimizer = "sgd") -> float:
    """Return a peak learning rate proportional to the samples per step."""
    if optimizer == "adamw":
        return _ADAMW_LR_PER_128 * samples_per_step / 128
    per_128 = _LR_PER_128 if model_name in CIFAR_MODELS else _LARGE_MODEL_LR_PER_128
    return per_128 * samples_per_step / 128


def default_epochs(steps_per_epoch: int, *, min_epochs: int, min_steps: int) -> int:
    """Return a number of epochs that has at least `min_epochs` and `min_steps`."""
    return max(min_epochs, math.ceil(min_steps / steps_per_epoch))
