"""`kdcache build-logits`: one pass of the teacher over all data, into a store."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import zarr
from torch import Tensor
from tqdm import tqdm

from kdcache.data.beton import Beton, open_beton
from kdcache.data.views import Policy
from kdcache.errors import TeacherError
from kdcache.files import exclusive_lock
from kdcache.options import BuildLogitsOptions
from kdcache.progress import logger, progress_bar
from kdcache.reader.batches import PixelReader
from kdcache.reader.probe import probe_pixels
from kdcache.store.codec import codec_named
from kdcache.store.layout import read_manifest
from kdcache.store.manifest import (
    CONDITIONS,
    FORMAT_VERSION,
    IDENTITY,
    StoreManifest,
    require_equal,
)
from kdcache.store.writer import StoreWriter
from kdcache.teacher.forward import TeacherForward, resolve_device
from kdcache.teacher.scores import SCORES, STATS
from kdcache.teacher.teacher import Teacher, open_teacher
from kdcache.workspace import Workspace

LARGEST_SHARD_ROWS = 4096
"""4096 rows of 1000 float16 are 8 MiB: few files, and little is lost when a build is killed."""

VIEWS_AT_ONCE = 8
"""Views of one block of rows whose answers are kept in memory together."""

FEWEST_SHARDS = 16
"""Small data sets get smaller shards, so that progress is kept there too."""


def build_logits(options: BuildLogitsOptions) -> dict[str, Any]:
    """Run the teacher over the clean view and V augmented views of all data.

    Returns:
        `samples`, `views`, `teacher_forwards` (images through the teacher in this call), `bytes`,
        `seconds` and `path`.

    Raises:
        ConfigError: if the teacher or the device does not exist.
        DatasetError: if nothing is packed, or an image cannot be decoded.
        TeacherError: if the teacher does not fit the data, or answers with inf or nan.
        CacheMismatchError: if the store was built from something else; names the fields.
        KDCacheError: if another process is building this store.
    """
    started = time.perf_counter()
    workspace = Workspace(options.workspace)
    beton = open_beton(workspace.require_beton())
    device = resolve_device(options.device)
    teacher = open_teacher(
        workspace.require_teacher(options.teacher),
        arch=options.arch,
        workspace=workspace,
        data=beton.manifest,
        image_size=options.image_size or beton.manifest.image_size,
    )
    path = workspace.store(teacher.name)
    with exclusive_lock(path.with_name(f".{path.name}.lock"), purpose="build-logits"):
        wanted = _wanted_manifest(options, beton, teacher, device, path)
        writer, work = _open_writer(path, wanted, beton, options)
        logger.info(
            "teacher %s (%s, sha256 %s), %d views of %s samples, %s, codec %s",
            teacher.name,
            teacher.arch,
            teacher.digest[:12],
            options.views,
            f"{len(beton):,}",
            wanted.policy,
            wanted.codec,
        )
        forwards = sum(len(shard.rows) for shard in work)
        if work:
            _run_teacher(writer, work, beton, teacher, device, options.num_workers)
        else:
            logger.info("up to date: %s", path)
        for view in range(writer.num_views + 1):
            writer.finish_view(view)
    workspace.remember("store", path)
    return {
        "samples": len(beton),
        "views": writer.num_views,
        "teacher_forwards": forwards,
        "bytes": sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        "seconds": round(time.perf_counter() - started, 3),
        "path": str(path.resolve()),
    }


class _Shard(NamedTuple):
    """A block of rows of one view that is still to be made."""

    view: int
    number: int
    rows: npt.NDArray[np.int64]
    """Sample ids."""


def _wanted_manifest(
    options: BuildLogitsOptions, beton: Beton, teacher: Teacher, device: torch.device, path: Path
) -> StoreManifest:
    """Say what the store is to be made from; what the user leaves open follows a store there."""
    data = beton.manifest
    found = (
        read_manifest(zarr.open_group(path, mode="r"), path=str(path)) if path.exists() else None
    )
    if options.overwrite:
        found = None
    default_batch = found.batch_size if found else (256 if device.type == "cuda" else 128)
    batch_size = options.batch_size or default_batch
    return StoreManifest(
        format_version=FORMAT_VERSION,
        data_fingerprint=data.fingerprint,
        samples=data.samples,
        classes=data.classes,
        class_names=data.class_names,
        teacher=teacher.name,
        teacher_arch=teacher.arch,
        teacher_digest=teacher.digest,
        policy=str(Policy.parse(options.policy or data.policy)),
        view_seed=options.view_seed,
        image_size=options.image_size or data.image_size,
        mean=data.mean,
        std=data.std,
        codec=options.codec,
        precision=options.precision or ("fp16" if device.type == "cuda" else "fp32"),
        shard_rows=_shard_rows(data.samples, batch_size),
        batch_size=batch_size,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        versions={name: version(name) for name in ("kdcache", "torch", "ffcv")},
    )


def _shard_rows(samples: int, batch_size: int) -> int:
    """Return the rows of a shard: whole batches, so that none crosses a shard."""
    rows = min(LARGEST_SHARD_ROWS, -(-samples // FEWEST_SHARDS))
    return max(1, rows // batch_size) * batch_size


def _open_writer(
    path: Path, wanted: StoreManifest, beton: Beton, options: BuildLogitsOptions
) -> tuple[StoreWriter, list[_Shard]]:
    """Create a store or continue one; return what is still to be made."""
    remedy = "Use --overwrite to build it anew, or another --workspace"
    if path.exists() and not options.overwrite:
        writer = StoreWriter(path)
        require_equal(writer.manifest, wanted, IDENTITY, path=str(path), remedy=remedy)
    else:
        writer = StoreWriter.create(
            path,
            wanted,
            labels=beton.labels,
            sample_ids=beton.sample_ids,
            pixel_probe=probe_pixels(beton, wanted.views, num_workers=options.num_workers),
        )
    writer.add_views(options.views)
    size = writer.manifest.shard_rows
    work = [
        _Shard(view, number, writer.sample_ids(view)[number * size : (number + 1) * size])
        for view in range(writer.num_views + 1)
        for number in writer.missing_shards(view)
    ]
    if work:
        require_equal(writer.manifest, wanted, CONDITIONS, path=str(path), remedy=remedy)
    return writer, work


def _run_teacher(
    writer: StoreWriter,
    work: list[_Shard],
    beton: Beton,
    teacher: Teacher,
    device: torch.device,
    num_workers: int | None,
) -> None:
    manifest = writer.manifest
    forward = TeacherForward(
        teacher.model,
        num_classes=manifest.classes,
        mean=manifest.mean,
        std=manifest.std,
        device=device,
        precision=manifest.precision,
    )
    groups = _view_groups(work)
    reader = PixelReader(
        beton,
        manifest.views,
        batch_size=manifest.batch_size,
        num_workers=num_workers,
        views_per_sample=max(len(views) for _, views in groups),
    )
    total = sum(len(shard.rows) for shard in work)
    with progress_bar(total=total, unit="image", description="teacher") as bar:
        for rows, views in groups:
            for shard, logits, labels in _answers(rows, views, reader, forward, bar):
                _commit(writer, shard, logits, labels)


def _view_groups(work: list[_Shard]) -> list[tuple[_Shard, list[int]]]:
    """Return one shard of each block of rows, with the views that are made of it together.

    Views of the same rows come from one decoding of each image.
    """
    blocks: dict[bytes, list[_Shard]] = {}
    for shard in work:
        blocks.setdefault(shard.rows.tobytes(), []).append(shard)
    return [
        (block[0], [shard.view for shard in block[first : first + VIEWS_AT_ONCE]])
        for block in blocks.values()
        for first in range(0, len(block), VIEWS_AT_ONCE)
    ]


def _answers(
    block: _Shard,
    views: list[int],
    reader: PixelReader,
    forward: TeacherForward,
    bar: tqdm,
) -> Iterator[tuple[_Shard, Tensor, Tensor]]:
    """Yield the shard of each view with its logits (n, C) and labels (n,), on the device."""
    size = reader.batch_size
    positions = reader.beton.positions(block.rows)
    count = len(positions)
    # The last batch is padded: every forward has one shape, so resumed bytes are equal bytes.
    padded = np.concatenate([positions, np.repeat(positions[-1:], -count % size)])
    batches = np.split(padded, len(padded) // size)
    logits: list[list[Tensor]] = [[] for _ in views]
    labels: list[Tensor] = []
    # Closed here: where the teacher fails, the error would keep the reader's thread alive.
    with closing(reader.read_views(batches, views)) as batches_read:  # type: ignore[type-var]
        for number, pixels in enumerate(batches_read):
            real = min(size, count - number * size)
            labels.append(pixels[0].labels[:real])
            for answers, seen in zip(logits, pixels, strict=True):
                answers.append(forward(seen.images)[:real].clone())
                bar.update(real)
    for view, answers in zip(views, logits, strict=True):
        yield (
            block._replace(view=view),
            torch.cat(answers),
            torch.cat(labels).to(forward.device),
        )


def _commit(writer: StoreWriter, shard: _Shard, logits: Tensor, labels: Tensor) -> None:
    rows = codec_named(writer.manifest.codec).encode(logits)
    # Rows too: a finite logit may be too large for the codec.
    finite = torch.isfinite(logits).all(dim=1) & torch.isfinite(rows).all(dim=1)
    if not finite.all():
        bad = shard.rows[(~finite).cpu().numpy()]
        raise TeacherError(
            f"the teacher answers view {shard.view} of sample {bad[0]} with inf, nan or a value "
            f"beyond the codec's range ({len(bad)} samples of this shard), expected finite "
            "logits. Try --precision fp32 and --codec float32, or look at the weights"
        )
    per_sample: dict[str, npt.NDArray[np.generic]] = {}
    if shard.view == 0:
        for folder, functions in (("scores", SCORES), ("stats", STATS)):
            for name, function in functions.items():
                per_sample[f"{folder}/{name}"] = function(logits, labels).cpu().numpy()
    writer.write_shard(shard.view, shard.number, rows.cpu().numpy(), per_sample)
