"""Describe the store that a build makes: its manifest, and the rows of its augmented views."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdcache.compute.precision import teacher_precision
from kdcache.data.beton import Beton
from kdcache.data.policy import Policy
from kdcache.options import BuildLogitsOptions
from kdcache.selection.subset import Subset
from kdcache.store.codecs.choice import require_fits
from kdcache.store.codecs.request import CodecRequest
from kdcache.store.manifest import FORMAT_VERSION, StoreManifest, digest_sample_ids
from kdcache.teacher.ensemble import Ensemble
from kdcache.workspace import Workspace

MAX_SHARD_ROWS = 4096
"""Maximum rows of a shard. 4096 rows of 1000 float16 are 8 MiB, so there are few files, and a
killed build loses little."""

MIN_SHARDS = 16
"""Minimum number of shards of view 0, unless a batch is larger than such a shard. So a killed build
of a small data set loses little."""


def rows_of_views(
    options: BuildLogitsOptions, workspace: Workspace, beton: Beton
) -> npt.NDArray[np.int64]:
    """Return the sample ids that the augmented views cover, (M,) sorted.

    Raises:
        CacheMismatchError: if the subset was selected from other data.
    """
    path = workspace.require_subset(options.subset or "full")
    if path is None:
        return beton.sample_ids
    subset = Subset.load_of(path, beton.manifest.fingerprint)
    beton.positions(subset.sample_ids)
    return subset.sample_ids


def target_manifest(
    options: BuildLogitsOptions,
    beton: Beton,
    teacher: Ensemble,
    device: torch.device,
    found: StoreManifest | None,
    rows: npt.NDArray[np.int64],
) -> StoreManifest:
    """Return the manifest of the store to build. Unset options follow `found`, an existing one."""
    data = beton.manifest
    codec = CodecRequest.parse(options.codec)
    require_fits(codec, data.samples, data.classes)
    default_batch = found.batch_size if found else (256 if device.type == "cuda" else 128)
    batch_size = options.batch_size or default_batch
    return StoreManifest(
        format_version=FORMAT_VERSION,
        data_fingerprint=data.fingerprint,
        samples=data.samples,
        classes=data.classes,
        class_names=data.class_names,
        rows=len(rows),
        rows_digest=digest_sample_ids(rows),
        teacher=teacher.name,
        teacher_arch=teacher.arch,
        teacher_digest=teacher.digest,
        teachers=[member.spec for member in teacher.members],
        ensemble=teacher.mode,
        policy=str(Policy.parse(options.policy or data.policy)),
        view_seed=options.view_seed,
        image_size=options.image_size or data.image_size,
        teacher_size=teacher.image_size,
        center_crop_ratio=teacher.center_crop_ratio,
        clean_filter=teacher.clean_filter,
        pixel_definition=options.pixel_definition,
        decode=options.decode,
        mean=[member.mean for member in teacher.members],
        std=[member.std for member in teacher.members],
        codec=str(codec),
        precision=teacher_precision(options.precision, device),
        shard_rows=found.shard_rows if found else _shard_rows(data.samples, batch_size),
        batch_size=batch_size,
        **machine_conditions(device),
    )


def machine_conditions(device: torch.device) -> dict[str, Any]:
    """Return the fields of a manifest that depend on the machine, not on the user."""
    versions = {name: version(name) for name in ("kdcache", "torch", "ffcv")}
    return {"device": _device_name(device), "versions": versions}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    # The number of threads affects the last bits.
    return f"cpu (threads: {torch.get_num_threads()})"


def _shard_rows(samples: int, batch_size: int) -> int:
    """Return the rows of a shard: a multiple of the batch size, so that no batch crosses shards."""
    rows = min(MAX_SHARD_ROWS, -(-samples // MIN_SHARDS))
    return max(1, rows // batch_size) * batch_size
