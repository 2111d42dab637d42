"""An exponential moving average of a model's weights, which is evaluated beside the model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class WeightAverage:
    """The average over all steps so far, of weights and of the norms' running statistics.

    After n steps the decay is at most (1 + n) / (10 + n), so that the first weights are soon
    forgotten: 0.999 alone would keep 37 % of them after 1,000 steps.

    Args:
        model: on its device; it is copied.
        decay: share of the average that stays at each step, in (0, 1).

    Attributes:
        model: with the averaged weights.

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
        """Of how many steps the weights were taken in."""
        return int(self._averaged.n_averaged)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the model's present weights in."""
        self._averaged.update_parameters(model)
        for averaged, present in zip(self.model.buffers(), model.buffers(), strict=True):
            if not averaged.is_floating_point():
                averaged.copy_(present)  # a norm's count of batches is no average

    def resume_at(self, steps: int) -> None:
        """Go on after so many steps, with the weights that `model` has been given."""
        self._averaged.n_averaged.fill_(steps)

    def _average(self, averaged: Sequence[Tensor], present: Sequence[Tensor], _: object) -> None:
        # torch's own count lies on the host; what it passes here lies on the device.
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        get_ema_multi_avg_fn(decay)(list(averaged), list(present), self.steps)
