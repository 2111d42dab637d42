"""Stopping at the first loss that is no number, with the samples that it came from."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdcache.errors import TrainingError

CHECK_EVERY = 50
"""Steps between two looks on CUDA, where each look waits for the device; on a CPU it costs nothing
to look at once."""

SHOWN = 8
"""Sample ids that a message names."""


class FiniteWatch:
    """Keeps the last losses with their samples until they were looked at.

    Args:
        device: where the losses are.
        remedy: what to try; the message ends with it.
    """

    def __init__(self, device: torch.device, remedy: str) -> None:
        self._every = 1 if device.type == "cpu" else CHECK_EVERY
        self._remedy = remedy
        self._losses: list[tuple[int, Tensor, Tensor]] = []

    def note(self, step: int, loss: Tensor, sample_ids: Tensor) -> None:
        """Keep the loss of a batch, and look at all that are kept when it is time.

        Args:
            step: of the run, from 1.
            loss: scalar.
            sample_ids: (B,) of the batch.

        Raises:
            TrainingError: if one is not finite; names the first.
        """
        self._losses.append((step, loss.detach(), sample_ids))
        if len(self._losses) >= self._every:
            self.look()

    def look(self) -> None:
        """Look at all that are kept, and let them go.

        Raises:
            TrainingError: if one is not finite; names the first.
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
