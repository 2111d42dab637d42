"""Stop at the first loss that is NaN or infinite, and name its samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdcache.errors import TrainingError

CHECK_EVERY = 50
"""Steps between two checks on CUDA, where a check waits for the device. On a CPU every step is
checked."""

SHOWN = 8
"""Maximum number of sample ids in a message."""


class FiniteWatch:
    """Collects losses with their sample ids, and checks them in blocks.

    Args:
        device: the device of the losses.
        remedy: the last sentence of the error message.
    """

    def __init__(self, device: torch.device, remedy: str) -> None:
        self._every = 1 if device.type == "cpu" else CHECK_EVERY
        self._remedy = remedy
        self._losses: list[tuple[int, Tensor, Tensor]] = []

    def add(self, step: int, loss: Tensor, sample_ids: Tensor) -> None:
        """Add the loss of a batch; check all collected losses if enough steps have passed.

        Args:
            step: number of the optimiser step in the run, from 1.
            loss: scalar.
            sample_ids: (B,) int64, the ids of the batch.

        Raises:
            TrainingError: if a loss is NaN or infinite; names the first.
        """
        self._losses.append((step, loss.detach(), sample_ids))
        if len(self._losses) >= self._every:
            self.check()

    def check(self) -> None:
        """Check all collected losses and forget them.

        Raises:
            TrainingError: if a loss is NaN or infinite; names the first.
        """
        kept, self._losses = self._losses, []
        if not kept:
            return
        values = torch.stack([loss for _, loss, _ in kept]).tolist()
        for (step, _, sample_ids), value in zip(kept, values, strict=True):
            if not math.isfinite(value):
                ids = sample_ids.tolist()
                shown = ", ".join(map(str, ids[:SHOWN]))
                more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
                raise TrainingError(
                    f"the loss of step {step} is {value}, expected a finite number; its samples "
                    f"are {shown}{more}. {self._remedy}"
                )
