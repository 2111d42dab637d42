"""Measure accuracy, likelihood and calibration of a model over any number of batches.

References:
    Guo et al. 2017, "On Calibration of Modern Neural Networks": the expected calibration error over
    15 bins of equal width.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kdcache.compute.figures import Quality
from kdcache.reader.batches import PixelReader
from kdcache.reader.order import batch_bounds

CALIBRATION_BINS = 15


class QualityMeter:
    """Accumulate the quality of a model over batches."""

    def __init__(self) -> None:
        self._count = 0
        self._hits_1 = self._hits_5 = 0
        self._nll = 0.0
        # For each bin: the sum of confidences minus the number of hits.
        self._gaps = torch.zeros(CALIBRATION_BINS, dtype=torch.float64)

    def add(self, logits_BC: Tensor, labels_B: Tensor) -> None:
        """Add (B, C) float32 logits and their (B,) labels, on one device."""
        top = logits_BC.topk(min(5, logits_BC.shape[1]), dim=1).indices == labels_B[:, None]
        self._count += len(labels_B)
        self._hits_1 += int(top[:, 0].sum())
        self._hits_5 += int(top.sum())
        wide_BC = logits_BC.double()
        self._nll += float(functional.cross_entropy(wide_BC, labels_B, reduction="sum"))
        confidence_B = wide_BC.softmax(dim=1).amax(dim=1).cpu()
        # Bins are open below and closed above, as in the paper: (0, 1/15], ...
        bins_B = (confidence_B * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1
        self._gaps.index_add_(0, bins_B, confidence_B - top[:, 0].cpu().double())

    def result(self) -> Quality:
        """Return the quality over all batches; at least one must have been added."""
        return Quality(
            top1=100 * self._hits_1 / self._count,
            top5=100 * self._hits_5 / self._count,
            nll=self._nll / self._count,
            ece=float(self._gaps.abs().sum()) / self._count,
        )


@torch.inference_mode()
def measure_quality(
    forward: Callable[[Tensor], Tensor], reader: PixelReader, device: torch.device
) -> Quality:
    """Return a model's quality on the clean view of a beton.

    Args:
        forward: maps (B, 3, S, S) uint8 pixels to (B, C) float32 logits on `device`.
        reader: reader of the beton.
        device: device of the logits.
    """
    count = len(reader.beton)
    bounds = batch_bounds(count, reader.batch_size)
    meter = QualityMeter()
    for pixels in reader.read(np.split(np.arange(count), bounds[1:-1]), 0):
        meter.add(forward(pixels.images), pixels.labels.to(device))
    return meter.result()
