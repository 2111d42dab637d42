"""Define `Quality`, the figures of a model on a set of images, without loading torch."""

from __future__ import annotations

from typing import NamedTuple


class Quality(NamedTuple):
    """Quality of a model on a set of images."""

    top1: float
    """Top-1 accuracy, in percent."""
    top5: float
    """Top-5 accuracy, in percent; 100 if there are at most five classes."""
    nll: float
    """Mean -log p of the label, in nats."""
    ece: float
    """Expected calibration error: mean gap of confidence and accuracy over bins, in [0, 1]."""
