"""Top-1 and top-5 on the evaluation split, through the same reader as everything else."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from kdcache.data.views import Views
from kdcache.errors import CacheMismatchError
from kdcache.options import Precision
from kdcache.reader.batches import PixelReader
from kdcache.reader.order import batch_bounds
from kdcache.teacher.forward import Normalise, autocast


class Accuracy(NamedTuple):
    """Percent of the evaluation split."""

    top1: float
    top5: float
    """The label is among the five largest logits, or among all where there are fewer classes."""


class Evaluator:
    """Evaluates models on the clean view of a beton.

    Args:
        beton: path of the packed evaluation images.
        views: image size; view 0 does not depend on policy and seed.
        classes: C of the training data.
        normalise: uint8 pixels to the model's input.
        device: where the model is.
        precision: of its body.
        num_workers: threads that read and decode.
    """

    def __init__(
        self,
        beton: Path,
        views: Views,
        *,
        classes: int,
        normalise: Normalise,
        device: torch.device,
        precision: Precision,
        num_workers: int | None,
    ) -> None:
        self._reader = PixelReader(beton, views, batch_size=256, num_workers=num_workers)
        found = self._reader.beton.manifest.classes
        if found != classes:
            raise CacheMismatchError(
                f"{beton} has {found} classes, expected {classes} as in the training data"
            )
        self._normalise = normalise
        self._device = device
        self._precision = precision

    @torch.inference_mode()
    def __call__(self, model: nn.Module) -> Accuracy:
        """Return a model's accuracy; the model keeps its mode."""
        was_training = model.training
        model.eval()
        count = len(self._reader.beton)
        bounds = batch_bounds(count, self._reader.batch_size)
        batches = np.split(np.arange(count), bounds[1:-1])
        hits_1 = hits_5 = 0
        for pixels in self._reader.read(batches, 0):
            images = self._normalise(pixels.images.to(self._device))
            labels = pixels.labels.to(self._device)
            with autocast(self._device, self._precision):
                logits = model(images).float()
            top = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
            hits_1 += int(top[:, 0].sum())
            hits_5 += int(top.sum())
        model.train(was_training)
        return Accuracy(100 * hits_1 / count, 100 * hits_5 / count)
