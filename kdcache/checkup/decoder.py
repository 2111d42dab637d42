"""Check that libjpeg-turbo, as FFCV is linked with it, decodes a packed JPEG as Pillow does."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

from kdcache.checkup.finding import Finding, error, ok
from kdcache.data.pack import pack
from kdcache.options import PackOptions
from kdcache.reader.batches import view_pixels

SIDE = 96
"""Height and width in pixels: large enough to be stored as JPEG."""


def check_decoder(_workspace: Path) -> Iterator[Finding]:
    """Pack two JPEGs, read their clean views, and compare the pixels with Pillow's."""
    with tempfile.TemporaryDirectory(prefix="kdcache-doctor-") as folder:
        source, workspace = Path(folder, "source"), Path(folder, "workspace")
        for name, image in (("a", _gradient()), ("b", _gradient().transpose(1, 0, 2))):
            (source / name).mkdir(parents=True)
            Image.fromarray(image).save(source / name / "image.jpg", quality=95)
        options = PackOptions(
            str(source),
            workspace=workspace,
            write_mode="jpg",
            val_fraction=0,
            num_workers=1,
        )
        pack(options)
        beton = workspace / "train.beton"
        decoded = view_pixels(
            beton, "clean", 0, 0, np.arange(2), image_size=SIDE, center_crop_ratio=1.0
        )
        expected = np.stack(
            [np.asarray(Image.open(source / name / "image.jpg")) for name in ("a", "b")]
        )
    difference = int(np.abs(decoded.astype(int) - expected).max())
    if difference > 0:
        found = (
            f"the reader's pixels differ from Pillow's by up to {difference} levels, expected "
            "none: FFCV is linked with an unusual build of libjpeg-turbo"
        )
        remedy = "pip install --force-reinstall --no-cache-dir --no-binary ffcv ffcv"
        yield error("decoder", found, remedy)
    else:
        yield ok("decoder", f"FFCV {version('ffcv')}: 2 JPEGs are decoded exactly as by Pillow")


def _gradient() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return a smooth colour gradient, (S, S, 3) uint8, that is not symmetric."""
    rising = np.linspace(0, 255, SIDE)
    rows, columns = np.meshgrid(rising, rising, indexing="ij")
    return np.stack([rows, columns, 255 - rows], axis=-1).astype(np.uint8)
