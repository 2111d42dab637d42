"""Read scikit-learn's handwritten digits, the source that needs no file and no network."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdcache.data.source import Source
from kdcache.data.source_kind import SourceKind
from kdcache.errors import DatasetError

_FILE = "sklearn/datasets/data/digits.csv.gz"


@dataclass(frozen=True)
class DigitsSplit:
    """scikit-learn's 8x8 handwritten digits."""

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def read(self, position: int) -> bytes:
        """Return the image at `position` as a PNG file."""
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(self.pixels[position]).save(file, "PNG")
        return file.getvalue()

    def name(self, position: int) -> str:
        """Return the image's index in scikit-learn's array."""
        return f"digits[{position}]"


def digits() -> Source:
    """Open the 1,797 real handwritten digits inside scikit-learn's wheel; needs no network."""
    grey, labels = _read_table()
    # Grey values are 0 to 16.
    pixels = np.floor(grey * (255 / 16) + 0.5).astype(np.uint8)
    return Source(
        splits={"train": DigitsSplit(pixels, labels)},
        class_names=[str(label) for label in range(10)],
        identity={"kind": "digits", "content": hashlib.sha256(pixels.tobytes()).hexdigest()},
        default_val_fraction=0.2,
        # A mirrored digit is not a digit.
        default_policy="pad-crop(1, flip=False)",
    )


def _read_table() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return the (N, 8, 8) grey values and (N,) labels of scikit-learn's file.

    This avoids the import of scikit-learn, which takes longer than the rest of a pack.
    """
    path = Path(str(distribution("scikit-learn").locate_file(_FILE)))
    if not path.exists():
        raise DatasetError(
            f"{path} does not exist, expected the digits that scikit-learn comes with. "
            "Run: pip install --force-reinstall scikit-learn"
        )
    table = np.loadtxt(path, delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)


KIND = SourceKind("digits", lambda given: given.text == "digits", lambda _given, _key: digits())
