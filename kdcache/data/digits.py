"""scikit-learn's handwritten digits: the source that needs no file and no network."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdcache.data.source import Source


@dataclass(frozen=True)
class DigitsSplit:
    """scikit-learn's 8x8 handwritten digits."""

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def read(self, position: int) -> bytes:
        """Return a PNG."""
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(self.pixels[position]).save(file, "PNG")
        return file.getvalue()

    def name(self, position: int) -> str:
        """Return its place in scikit-learn's array."""
        return f"digits[{position}]"


def digits() -> Source:
    """Open the 1,797 real handwritten digits inside scikit-learn's wheel; needs no network."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # Grey values are 0 to 16.
    pixels = np.floor(bunch.images * (255 / 16) + 0.5).astype(np.uint8)
    return Source(
        splits={"train": DigitsSplit(pixels, bunch.target.astype(np.int64))},
        class_names=[str(name) for name in bunch.target_names],
        identity={"kind": "digits", "content": hashlib.sha256(pixels.tobytes()).hexdigest()},
        default_val_fraction=0.2,
        # A mirrored digit is another sign.
        default_policy="pad-crop(1, flip=False)",
    )
