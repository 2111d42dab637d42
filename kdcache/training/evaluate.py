"""Top-1 and top-5 on the evaluation split, through the same reader as everything else."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdcache.data.views import Views
from kdcache.errors import CacheMismatchError
from kdcache.options import Precision
from kdcache.reader.batches import PixelReader
from kdcache.teacher.forward import Normalise, autocast
from kdcache.teacher.quality import measure_quality


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

        def answer(images: Tensor) -> Tensor:
            with autocast(self._device, self._precision):
                return model(self._normalise(images.to(self._device))).float()

        found = measure_quality(answer, self._reader, self._device)
        model.train(was_training)
        return Accuracy(found.top1, found.top5)
