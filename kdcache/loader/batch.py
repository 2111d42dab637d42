"""Define `Batch`, the data of one training step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from kdcache.arguments import require_positive
from kdcache.compute.normalize import Normalise
from kdcache.errors import ConfigError
from kdcache.loader.staging import Rows


class Batch(NamedTuple):
    """The data of one training step, all on one device.

    A batch may be kept. The loader fills a buffer again only when no tensor uses it any more.

    `move_data_to_device` of Lightning and `send_to_device` of accelerate move the whole batch. They
    call `to`.
    """

    images: Tensor
    """(B, 3, S, S) uint8, channels last, in [0, 255]: final pixels, not normalised."""
    labels: Tensor
    """(B,) int64, in [0, C)."""
    sample_ids: Tensor
    """(B,) int64, indices into the full training set."""
    view: int
    """Number of the view that all these images show."""
    rows: Rows | None
    """The teacher's logits as the store encodes them; None if the loader has no teacher."""
    weights: Tensor | None
    """(B,) float32 weight of the sample's loss; None for equal weights."""
    normalize: Normalise
    """Normalises pixels with the mean and std of the full training set."""

    def normalized(self) -> Tensor:
        """Return the student's input: (B, 3, S, S) float32 of mean 0 and std 1, channels last.

        `kdcache train` feeds its student the same values.
        """
        images: Tensor = self.normalize(self.images)
        return images

    def teacher_logits(self, temperature: float | None = None) -> Tensor:
        """Return the teacher's logits for these images, (B, C) float32, on the batch's device.

        A codec may shift each row by a constant, which softmax ignores.

        Args:
            temperature: the temperature at which the loss uses the logits. Default: 1. Only two
                codecs depend on it: `topk` decodes its tail for it, and the rows of `sampled` hold
                draws at one temperature.

        Raises:
            ConfigError: if the loader has no teacher, the temperature is not a finite number above
                0, or the store cannot serve it.
        """
        if temperature is not None:
            temperature = require_positive("temperature", temperature)
        if self.rows is None:
            raise ConfigError(
                "batch.rows is None, expected a teacher's rows. Open the DistillLoader with a store"
            )
        return self.rows.logits(temperature)

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> Batch:
        """Return the batch on a device. Tensors that are already there are not copied.

        Args:
            device: the target; tensors keep their types.
            non_blocking: do not wait for the copy, as in `Tensor.to`. It has no effect on a batch
                on the CPU, because the loader could refill the images' buffer before the copy ends,
                if the batch is dropped meanwhile.
        """
        overlaps = non_blocking and self.images.device.type != "cpu"
        if not isinstance(device, (torch.device, str, int)):
            raise ConfigError(
                f"device is {device}, expected a device of torch, such as cpu, cuda or cuda:1",
                parameter="device",
                value=device,
            )
        moved = self.map_tensors(lambda tensor: tensor.to(device, non_blocking=overlaps))
        # Copy the module: `Module.to` works in place, and the loader shares this module.
        return moved._replace(normalize=copy.deepcopy(self.normalize).to(device))

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Return a batch in which each tensor is replaced by the function's result."""
        return self._replace(
            images=function(self.images),
            labels=function(self.labels),
            sample_ids=function(self.sample_ids),
            rows=self.rows and self.rows._replace(encoded=function(self.rows.encoded)),
            weights=None if self.weights is None else function(self.weights),
        )
