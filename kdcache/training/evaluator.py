"""Measure a model on a split, through the same reader as training."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from kdcache.compute.figures import Quality
from kdcache.compute.normalize import Normalise
from kdcache.compute.precision import autocast
from kdcache.compute.quality import measure_quality
from kdcache.data.policy import CENTER_CROP_RATIO
from kdcache.data.views import Views
from kdcache.errors import CacheMismatchError
from kdcache.options import Precision
from kdcache.reader.batches import PixelReader


class Evaluator:
    """Evaluates models on the clean view of a beton.

    Args:
        beton: path of the packed evaluation images.
        views: only their image size is used. View 0 does not depend on policy and seed, and here it
            always has the default crop ratio, even if the teacher's clean view has another.
        classes: number of classes C of the training data.
        normalise: maps uint8 pixels to the model's input.
        device: the model's device.
        precision: autocast precision of the model's body.
        num_workers: threads that read and decode; None for all cores.
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
        # The clean view of every student; a store has that of its teacher.
        views = views._replace(center_crop_ratio=CENTER_CROP_RATIO, clean_filter="bilinear")
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
    def __call__(self, model: nn.Module) -> Quality:
        """Return the quality of a model; the model stays in train or eval mode as it was."""
        was_training = model.training
        model.eval()

        def answer(images: Tensor) -> Tensor:
            with autocast(self._device, self._precision):
                return model(self._normalise(images.to(self._device))).float()

        found = measure_quality(answer, self._reader, self._device)
        model.train(was_training)
        return found
