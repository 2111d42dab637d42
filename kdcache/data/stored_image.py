"""One image as a beton holds it; apart from what decodes and encodes, which loads Pillow."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class StoredImage(NamedTuple):
    """One image as the beton holds it."""

    content: bytes
    """JPEG file, or (height, width, 3) uint8 pixels."""
    is_jpeg: bool
    height: int
    width: int
    digest: bytes
    """16 bytes: blake2b of `content`."""
    channel_sums: npt.NDArray[np.int64]
    """(3, 2): sum and sum of squares of the uint8 values of each channel: as the reader decodes
    them where a JPEG is kept, else before encoding."""
