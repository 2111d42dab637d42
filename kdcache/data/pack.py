"""`kdcache pack`: a source of images, or the kept samples of a pack -> betons with manifests.

Worker processes decode and encode; this process writes, in order. An image that cannot be decoded
stops the pack with its name, and nothing is left behind.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kdcache.data.beton import (
    FORMAT_VERSION,
    LARGEST_SMALL_SIZE,
    BetonManifest,
    digests_path,
    fingerprint,
    manifest_path,
    write_beton,
)
from kdcache.data.images import StoredImage, store_image
from kdcache.data.repack import pack_subset
from kdcache.data.source import Source, Split, divide
from kdcache.data.sources import open_source
from kdcache.errors import CacheMismatchError, DatasetError
from kdcache.files import (
    differences,
    replace_atomically,
    sweep_partials,
    sync_directory,
    this_process,
    write_json,
)
from kdcache.options import PackOptions
from kdcache.progress import logger, progress_bar
from kdcache.workspace import Workspace

_IMAGES_PER_TASK = 32


def pack(options: PackOptions) -> dict[str, Any]:
    """Pack a source into the workspace, or a subset's samples into a beton beside the subset.

    Returns:
        `fingerprint`, `skipped` and, for `train` and `val`, `samples`, `classes` and `path`; `val`
        is None where there is no evaluation split.

    Raises:
        ConfigError: if the source does not exist, or its only split must be divided and
            --val-fraction is missing.
        DatasetError: if the source holds no images, or one that cannot be decoded.
        CacheMismatchError: if the workspace holds betons packed from something else, or the subset
            is of other data.
    """
    workspace = Workspace(options.workspace)
    if options.subset is not None:
        path = pack_subset(workspace, options.subset, overwrite=options.overwrite)
        manifest = BetonManifest.load(path)
        train = _summary(path, manifest)
        return {"fingerprint": manifest.fingerprint, "train": train, "val": None, "skipped": 0}
    assert options.source is not None  # noqa: S101  (the options say so)
    source = open_source(options.source)
    splits = divide(source, options.val_fraction, options.seed)
    made_from = source.identity | {
        "val_fraction": options.val_fraction,
        "seed": options.seed,
        "write_mode": options.write_mode,
        "max_resolution": options.max_resolution,
    }
    if _is_up_to_date(workspace, splits, made_from, overwrite=options.overwrite):
        logger.info("up to date: %s", workspace.beton("train"))
        return _result(workspace, splits)
    if source.left_out:
        logger.warning(
            "%d files are not images and are left out, the first is %s",
            len(source.left_out),
            source.left_out[0],
        )
    workspace.root.mkdir(parents=True, exist_ok=True)
    sweep_partials(workspace.root)
    with TemporaryDirectory(
        prefix=".pack.", suffix=f".{this_process()}.partial", dir=workspace.root
    ) as folder:
        staged = Workspace(Path(folder))
        first: BetonManifest | None = None
        for name in sorted(splits):  # train comes first: val takes over what it decides
            made = _pack_split(staged.beton(name), splits[name], source, options, made_from, first)
            first = first or made
        _commit(staged, workspace)
    return _result(workspace, splits)


def _commit(staged: Workspace, workspace: Workspace) -> None:
    """Move whole betons into the workspace; what was there survives until both are whole."""
    for split in ("train", "val"):
        manifest_path(workspace.beton(split)).unlink(missing_ok=True)
    for path_of in (Workspace.beton, _digests, _manifest):  # a manifest says that the rest is there
        for split in ("train", "val"):
            if path_of(staged, split).exists():
                path_of(staged, split).replace(path_of(workspace, split))
            else:
                path_of(workspace, split).unlink(missing_ok=True)
    sync_directory(workspace.root)


def _digests(workspace: Workspace, split: str) -> Path:
    return digests_path(workspace.beton(split))


def _manifest(workspace: Workspace, split: str) -> Path:
    return manifest_path(workspace.beton(split))


def _is_up_to_date(
    workspace: Workspace, splits: dict[str, Split], made_from: dict[str, Any], *, overwrite: bool
) -> bool:
    """Return whether the same pack is there, whole.

    Raises:
        CacheMismatchError: if another pack is there and it may not be replaced.
    """
    path = workspace.beton("train")
    if not manifest_path(path).exists() or overwrite:
        return False
    found = BetonManifest.load(path).made_from
    if differ := differences(found, dict.fromkeys(found) | made_from):
        raise CacheMismatchError(
            f"{path} was packed from something else: {differ}. "
            "Use --overwrite to replace it, or another --workspace"
        )
    return all(
        workspace.beton(split).exists() and manifest_path(workspace.beton(split)).exists()
        for split in splits
    )


def _pack_split(
    path: Path,
    split: Split,
    source: Source,
    options: PackOptions,
    made_from: dict[str, Any],
    train: BetonManifest | None,
) -> BetonManifest:
    name = path.stem
    count = len(split.labels)
    sample_ids = np.arange(count, dtype=np.int64)
    digests = np.zeros((count, 16), dtype=np.uint8)
    sums = np.zeros((3, 2), dtype=np.int64)
    sides = np.zeros((count, 2), dtype=np.int64)
    write_mode = _choose_write_mode(split, options) if train is None else train.write_mode
    logger.info("%s: %s images as %s", name, f"{count:,}", write_mode)

    def images() -> Iterator[StoredImage]:
        nonlocal sums
        with progress_bar(total=count, unit="image", description=f"pack {name}") as bar:
            stored = _stored_images(split, write_mode, options.max_resolution, options.num_workers)
            for position, image in enumerate(stored):
                digests[position] = np.frombuffer(image.digest, dtype=np.uint8)
                sums += image.channel_sums
                sides[position] = image.height, image.width
                yield image
                bar.update()

    beton_bytes = write_beton(path, images(), split.labels, sample_ids)
    with replace_atomically(digests_path(path)) as partial, partial.open("wb") as file:
        np.save(file, digests)
    image_size = _choose_image_size(sides)
    num_pixels = float(sides.prod(axis=1).sum())
    mean = sums[:, 0] / num_pixels / 255
    std = np.sqrt(np.maximum(sums[:, 1] / num_pixels / 255**2 - mean**2, 1e-12))
    manifest = BetonManifest(
        format_version=FORMAT_VERSION,
        split=name,
        samples=count,
        classes=len(source.class_names),
        class_names=source.class_names,
        image_size=image_size,
        policy=source.default_policy or _choose_policy(image_size),
        mean=[round(float(value), 6) for value in mean],
        std=[round(float(value), 6) for value in std],
        write_mode=write_mode,
        fingerprint=fingerprint(source.class_names, sample_ids, split.labels, digests),
        beton_bytes=beton_bytes,
        made_from=made_from,
    )
    if train is not None:
        # Evaluation sees what training sees.
        manifest = replace(
            manifest,
            image_size=train.image_size,
            policy=train.policy,
            mean=train.mean,
            std=train.std,
        )
    write_json(manifest_path(path), manifest.to_json())
    return manifest


def _choose_write_mode(split: Split, options: PackOptions) -> Literal["raw", "jpg"]:
    if options.write_mode != "auto":
        return options.write_mode
    # Mixed sizes are usual; a few images from all over tell.
    looked_at = np.unique(np.linspace(0, len(split.labels) - 1, 64).astype(np.int64))
    images = (_store(split, int(p), "raw", options.max_resolution) for p in looked_at)
    is_small = all(max(image.height, image.width) <= LARGEST_SMALL_SIZE for image in images)
    return "raw" if is_small else "jpg"


def _choose_image_size(sides: npt.NDArray[np.int64]) -> int:
    """Return the images' own size where all have one small square size, else 32 or 224."""
    largest = int(sides.max())
    if largest > LARGEST_SMALL_SIZE:
        return 224
    return largest if (sides == largest).all() else 32


def _choose_policy(image_size: int) -> str:
    return "pad-crop(4, flip=True)" if image_size <= LARGEST_SMALL_SIZE else "rrc"


def _stored_images(
    split: Split,
    write_mode: Literal["raw", "jpg"],
    max_resolution: int | None,
    num_workers: int | None,
) -> Iterator[StoredImage]:
    """Yield every image of a split in order, decoded and encoded by worker processes."""
    count = len(split.labels)
    tasks = iter(range(0, count, _IMAGES_PER_TASK))
    workers = min(num_workers or len(os.sched_getaffinity(0)), -(-count // _IMAGES_PER_TASK))
    # Not fork: this process has threads (numpy's, FFCV's), and a fork would copy their locks.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, context, _start_worker, (split, write_mode, max_resolution)
    ) as pool:
        # A short queue keeps the workers busy and the memory flat.
        pending: deque[Future[list[StoredImage]]] = deque()
        try:
            while True:
                while len(pending) < 4 * workers and (first := next(tasks, None)) is not None:
                    pending.append(
                        pool.submit(_store_some, first, min(first + _IMAGES_PER_TASK, count))
                    )
                if not pending:
                    return
                yield from pending.popleft().result()
        except BrokenProcessPool as error:
            raise DatasetError(
                "a pack worker was ended from outside, expected it to run to its end; "
                "memory may have run out. Try fewer with --num-workers, or --max-resolution"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


_worker_task: tuple[Split, Literal["raw", "jpg"], int | None]


def _start_worker(
    split: Split, write_mode: Literal["raw", "jpg"], max_resolution: int | None
) -> None:
    global _worker_task  # noqa: PLW0603  (a worker process has one task for its whole life)
    _worker_task = (split, write_mode, max_resolution)


def _store_some(first: int, end: int) -> list[StoredImage]:
    split, write_mode, max_resolution = _worker_task
    return [_store(split, position, write_mode, max_resolution) for position in range(first, end)]


def _store(
    split: Split, position: int, write_mode: Literal["raw", "jpg"], max_resolution: int | None
) -> StoredImage:
    try:
        return store_image(
            split.read(position), write_mode=write_mode, max_resolution=max_resolution
        )
    except Exception as error:  # Pillow's plugins raise almost anything on damaged files
        raise DatasetError(
            f"{split.name(position)} cannot be decoded: {error}. Replace or remove the file"
        ) from error


def _result(workspace: Workspace, splits: dict[str, Split]) -> dict[str, Any]:
    result: dict[str, Any] = {"fingerprint": "", "train": None, "val": None, "skipped": 0}
    for split in splits:
        path = workspace.beton(split)
        manifest = BetonManifest.load(path)
        result[split] = _summary(path, manifest)
        if split == "train":
            result["fingerprint"] = manifest.fingerprint
    return result


def _summary(path: Path, manifest: BetonManifest) -> dict[str, Any]:
    return {
        "samples": manifest.samples,
        "classes": manifest.classes,
        "path": str(path.resolve()),
    }
