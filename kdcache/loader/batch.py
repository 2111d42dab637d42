"""What a training step gets."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from kdcache.loader.staging import Rows


class Batch(NamedTuple):
    """One training step's data, all on the same device.

    On a CPU the images lie in a buffer that is filled again after the next batch was asked for:
    clone what you keep longer.
    """

    images: Tensor
    """(B, 3, S, S) uint8, channels last: final pixels; normalise on the device."""
    labels: Tensor
    """(B,) int64."""
    sample_ids: Tensor
    """(B,) int64, positions in the full training set."""
    view: int
    """The view that all of these images show."""
    rows: Rows | None
    """The teacher's answers; None where the loader has none."""
    weights: Tensor | None
    """(B,) float32 weight of each sample's loss; None for equal weights."""
