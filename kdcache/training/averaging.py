"""Average a model's weights over the steps; the average is evaluated as well as the model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class WeightAverage:
    """An exponential moving average of the weights and of the norms' running statistics.

    After n steps the decay is at most (1 + n) / (10 + n), so the first weights are soon
    forgotten: a constant 0.999 would keep 37 % of them after 1,000 steps.

    Args:
        model: the model, on its device; it is copied.
        decay: fraction of the average that each step keeps, in (0, 1).

    Attributes:
        model: the model with the averaged weights.

    References:
        Polyak, Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging". The bound
        of the decay is that of TensorFlow's ExponentialMovingAverage with `num_updates`.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._averaged = AveragedModel(model, multi_avg_fn=self._average, use_buffers=True)
        self.model: nn.Module = self._averaged.module

    @property
    def steps(self) -> int:
        """Return the number of updates so far."""
        return int(self._averaged.n_averaged)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average with the model's current weights."""
        self._averaged.update_parameters(model)
        for averaged, present in zip(self.model.buffers(), model.buffers(), strict=True):
            if not averaged.is_floating_point():
                averaged.copy_(present)  # a norm's count of batches is not averaged

    def resume_at(self, steps: int) -> None:
        """Continue after this many updates, with the weights that `model` has now."""
        self._averaged.n_averaged.fill_(steps)

    def _average(self, averaged: Sequence[Tensor], present: Sequence[Tensor], _: object) -> None:
        # torch passes a copy of its count on the device; `self.steps` reads the one on the host.
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        get_ema_multi_avg_fn(decay)(list(averaged), list(present), self.steps)
