"""Define the stored form of an image, without Pillow, which only encoding and decoding need."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class StoredImage(NamedTuple):
    """The stored form of one image."""

    content: bytes
    """JPEG file, or (height, width, 3) uint8 pixels."""
    is_jpeg: bool
    height: int
    width: int
    digests: npt.NDArray[np.uint8]
    """(3, 16) blake2b of the source file, of the decoded pixels and of `content`; see
    `kdcache.data.digests`."""
    channel_sums: npt.NDArray[np.int64]
    """(3, 2) sum and sum of squares of the uint8 values of each channel: of the pixels as the
    reader decodes them if a JPEG is kept, otherwise of the pixels before encoding."""
