"""A store whose logits spell the sample id and the view, written without any teacher."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdcache.data.beton import Beton
from kdcache.data.policy import CENTER_CROP_RATIO
from kdcache.store.format.layout import PER_SAMPLE_ARRAYS
from kdcache.store.logit_store import LogitStore
from kdcache.store.manifest import FORMAT_VERSION, StoreManifest, digest_sample_ids
from kdcache.store.writer import StoreWriter

SHARD_ROWS = 7
"""Divides none of the tests' data sets: every store ends in a shard that is not full."""


def spelled(sample_ids: npt.ArrayLike, view: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Return (n, 4) logits (id, view, -id, -view); every codec keeps them: small, mean zero."""
    ids, views = np.broadcast_arrays(np.asarray(sample_ids), view)
    return np.stack([ids, views, -ids, -views], axis=1).astype(np.float32)


def write_spelled_store(
    path: Path,
    beton: Beton,
    *,
    num_views: int,
    codec: str = "dense",
    sample_ids: npt.NDArray[np.int64] | None = None,
) -> LogitStore:
    """Write a finished store for a beton's data.

    Args:
        path: of the store.
        beton: the training images.
        num_views: V.
        codec: of the rows.
        sample_ids: rows of the views from 1; all when left out.
    """
    data = beton.manifest
    rows = beton.sample_ids if sample_ids is None else sample_ids
    manifest = StoreManifest(
        format_version=FORMAT_VERSION,
        data_fingerprint=data.fingerprint,
        samples=data.samples,
        classes=4,
        class_names=["id", "view", "-id", "-view"],
        rows=len(rows),
        rows_digest=digest_sample_ids(rows),
        teacher="spelled",
        teacher_arch="none",
        teacher_digest="0" * 64,
        teachers=["spelled"],
        ensemble=None,
        policy=data.policy,
        view_seed=0,
        image_size=data.image_size,
        teacher_size=data.image_size,
        center_crop_ratio=CENTER_CROP_RATIO,
        clean_filter="bilinear",
        pixel_definition="pillow",
        decode="full",
        mean=[data.mean],
        std=[data.std],
        codec=codec,
        precision="fp32",
        shard_rows=SHARD_ROWS,
        batch_size=SHARD_ROWS,
        device="cpu",
        versions={},
    )
    writer = StoreWriter.create(path, manifest, labels=beton.labels, sample_ids=rows)
    writer.add_views(num_views)
    for view in range(num_views + 1):
        for shard in writer.missing_shards(view):
            ids = writer.sample_ids(view)[shard * SHARD_ROWS : (shard + 1) * SHARD_ROWS]
            per_sample = {
                name: np.zeros(len(ids), dtype)
                for name, dtype in PER_SAMPLE_ARRAYS.items()
                if view == 0
            }
            encoded = writer.codec(view).encode(spelled(ids, view), view_keys=ids, view=view)
            writer.write_shard(view, shard, encoded, per_sample)
        writer.finish_view(view)
    return LogitStore.open(path)
