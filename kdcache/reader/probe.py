"""Digest a few views, to check that this machine decodes the pixels that the teacher saw.

Another build of libjpeg-turbo or OpenCV may round differently. A store holds digests of a few
views, and `kdcache train` computes them again before it starts.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from kdcache.data.beton import Beton
from kdcache.data.views import Views
from kdcache.reader.batches import PixelReader
from kdcache.rng import generator

PROBE_VIEWS = (0, 1, 2, 3)
"""Views of each probed sample; the store need not hold rows of them."""

PROBE_SAMPLES = 16


def probe_ids(sample_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the sample ids that are probed, at most `PROBE_SAMPLES`, sorted."""
    count = min(PROBE_SAMPLES, len(sample_ids))
    return np.sort(generator(0, "pixel-probe").choice(sample_ids, count, replace=False))


def probe_pixels(
    beton: Beton,
    views: Views,
    *,
    sample_ids: npt.NDArray[np.int64] | None = None,
    num_workers: int | None = None,
) -> npt.NDArray[np.uint8]:
    """Return the digests of the probed pixels.

    Args:
        beton: the images.
        views: policy, seed and image size.
        sample_ids: at least one. Default: `probe_ids` of the beton.
        num_workers: number of threads. Default: all that this process may use.

    Returns:
        (n, 16) uint8: blake2b per (sample, view), sorted by sample id; the views of a sample are
        adjacent.
    """
    ids = probe_ids(beton.sample_ids) if sample_ids is None else sample_ids
    reader = PixelReader(
        beton,
        views,
        batch_size=len(ids),
        num_workers=num_workers,
        views_per_sample=len(PROBE_VIEWS),
    )
    digests = [
        hashlib.blake2b(image.permute(1, 2, 0).numpy().tobytes(), digest_size=16).digest()
        for seen in reader.read_views([beton.positions(ids)], PROBE_VIEWS)
        for sample_views in zip(*(view.images for view in seen), strict=True)
        for image in sample_views
    ]
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 16)
