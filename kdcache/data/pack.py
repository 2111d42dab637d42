"""`kdcache pack`: write betons from a source of images, or from the kept samples of a packed one.

Worker processes decode and encode; this process writes in the order of the samples. If an image
cannot be decoded, the pack stops with its name and leaves nothing behind, or skips and lists it.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from kdcache.cores import available_cores
from kdcache.data.beton import open_beton
from kdcache.data.beton_manifest import (
    FORMAT_VERSION,
    BetonManifest,
    fingerprint,
    manifest_path,
    names_path,
)
from kdcache.data.beton_writer import write_beton
from kdcache.data.digests import DECODED, DIGEST_BYTES, digests_path, save_digests
from kdcache.data.images import store_image
from kdcache.data.names import save_names
from kdcache.data.pack_result import PackResult
from kdcache.data.policy import MAX_SMALL_IMAGE_SIZE
from kdcache.data.repack import pack_subset
from kdcache.data.resources import ResourceEstimate, require_resources
from kdcache.data.source import Source, Split, split_train_val
from kdcache.data.sources import open_source
from kdcache.data.stored_image import StoredImage
from kdcache.errors import CacheMismatchError, DatasetError
from kdcache.files import (
    sha256_of,
    sweep_partials,
    sync_directory,
    this_process,
)
from kdcache.identity import differences
from kdcache.options import PackOptions
from kdcache.progress import logger, progress_bar
from kdcache.workspace import Workspace

_TASK_BYTES = 4 << 20
"""Maximum size of the images that a worker returns at once: small, so that many fit in a queue."""

_MAX_IMAGES_PER_TASK = 256
_TASKS_PER_WORKER = 4
"""Number of tasks in the queue per worker."""

_IMAGE_COST_BYTES = 20_000
"""Fixed cost of an image, as a number of decoded bytes that take equally long."""

_WORTH_A_WORKER_BYTES = 64 << 20
"""Number of decoded bytes that take about as long as the start of a process."""


class BadImage(NamedTuple):
    """An image that could not be decoded."""

    position: int
    """Index of the image in its split of the source."""
    name: str
    reason: str


def pack(options: PackOptions) -> PackResult:
    """Pack a source into the workspace, or a subset's samples into a beton beside the subset.

    Raises:
        ConfigError: if the source does not exist, or its only split must be divided and
            --val-fraction is missing.
        DatasetError: if the source holds no images; if an image cannot be decoded and
            --on-bad-image skip is not given; or if there is too little memory or disk.
        CacheMismatchError: if the workspace holds betons that were packed from other inputs, or the
            subset was selected from other data.
    """
    workspace = Workspace(Path(options.workspace))
    if options.subset is not None:
        packed = open_beton(pack_subset(workspace, options.subset, overwrite=options.overwrite))
        return PackResult(
            fingerprint=packed.manifest.fingerprint, train=packed, val=None, skipped=0
        )
    assert options.source is not None  # noqa: S101  (the options require it)
    source = open_source(options.source, val_source=options.val_source, label_key=options.label_key)
    splits = split_train_val(source, options.val_fraction, options.seed)
    made_from = source.identity | {
        "label_key": options.label_key,
        "on_bad_image": options.on_bad_image,
        "val_fraction": options.val_fraction,
        "seed": options.seed,
        "write_mode": options.write_mode,
        "max_resolution": options.max_resolution,
    }
    if _is_up_to_date(workspace, splits, made_from, overwrite=options.overwrite):
        logger.info("up to date: %s", workspace.beton("train"))
        return _result(workspace, splits)
    if source.ignored_splits:
        logger.warning(
            "%s has several evaluation splits; ignored: %s. Choose one with --val-source",
            source.where,
            ", ".join(source.ignored_splits),
        )
    if source.ignored_files:
        logger.warning(
            "%d files are not images and are left out, the first is %s",
            len(source.ignored_files),
            source.ignored_files[0],
        )
    workspace.root.mkdir(parents=True, exist_ok=True)
    sweep_partials(workspace.root)
    with TemporaryDirectory(
        prefix=".pack.", suffix=f".{this_process()}.partial", dir=workspace.root
    ) as folder:
        staged = Workspace(Path(folder))
        first: BetonManifest | None = None
        for name in sorted(splits):  # train comes first, because val uses its settings
            made = _pack_split(staged.beton(name), splits[name], source, options, made_from, first)
            first = first or made
        _commit(staged, workspace)
    return _result(workspace, splits)


def _commit(staged: Workspace, workspace: Workspace) -> None:
    """Move complete betons into the workspace; their manifests, which mark them complete, last."""
    for split in ("train", "val"):
        manifest_path(workspace.beton(split)).unlink(missing_ok=True)
    for path_of in (Workspace.beton, _digests, _names, _manifest):
        for split in ("train", "val"):
            if path_of(staged, split).exists():
                path_of(staged, split).replace(path_of(workspace, split))
            else:
                path_of(workspace, split).unlink(missing_ok=True)
    sync_directory(workspace.root)


def _digests(workspace: Workspace, split: str) -> Path:
    return digests_path(workspace.beton(split))


def _names(workspace: Workspace, split: str) -> Path:
    return names_path(workspace.beton(split))


def _manifest(workspace: Workspace, split: str) -> Path:
    return manifest_path(workspace.beton(split))


def _is_up_to_date(
    workspace: Workspace, splits: dict[str, Split], made_from: dict[str, Any], *, overwrite: bool
) -> bool:
    """Return whether the workspace already holds this pack, complete.

    Raises:
        CacheMismatchError: if it holds another pack and `overwrite` is False.
    """
    path = workspace.beton("train")
    if not manifest_path(path).exists() or overwrite:
        return False
    found = BetonManifest.load(path).made_from
    if differ := differences(found, dict.fromkeys(found) | made_from):
        raise CacheMismatchError(
            f"{path} was packed from other inputs: {differ}. "
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
    digests = np.zeros((count, 3, DIGEST_BYTES), dtype=np.uint8)
    sums = np.zeros((3, 2), dtype=np.int64)
    sides = np.zeros((count, 2), dtype=np.int64)
    labels = np.zeros(count, dtype=np.int64)
    skipped: list[BadImage] = []
    ids = itertools.count()
    probe = _probe(split, options.max_resolution)
    write_mode = _choose_write_mode(probe, options) if train is None else train.write_mode
    workload = _plan(split, probe, write_mode, options)
    require_resources(workload.need, workload.workers, path.parent)
    logger.info("%s: %s images as %s", name, f"{count:,}", write_mode)

    def samples() -> Iterator[tuple[StoredImage, int, int]]:
        nonlocal sums
        with progress_bar(total=count, unit="image", description=f"pack {name}") as bar:
            stored = _stored_images(split, workload)
            for image, label in zip(stored, split.labels.tolist(), strict=True):
                bar.update()
                if isinstance(image, BadImage):
                    _require_skipping(image, options)
                    skipped.append(image)
                    continue
                sample_id = next(ids)
                digests[sample_id] = image.digests
                sums += image.channel_sums
                sides[sample_id] = image.height, image.width
                labels[sample_id] = label
                yield image, label, sample_id

    written = write_beton(path, samples(), count)
    kept = count - len(skipped)
    _report_skipped(name, skipped, labels[:kept], source)
    digests, sides, labels = digests[:kept], sides[:kept], labels[:kept]
    sample_ids = np.arange(kept, dtype=np.int64)
    save_digests(path, digests)
    left_out = {image.position for image in skipped}
    names = [split.name(position) for position in range(count) if position not in left_out]
    save_names(path, sample_ids, names)
    image_size = _choose_image_size(sides)
    num_pixels = float(sides.prod(axis=1).sum())
    mean = sums[:, 0] / num_pixels / 255
    std = np.sqrt(np.maximum(sums[:, 1] / num_pixels / 255**2 - mean**2, 1e-12))
    manifest = BetonManifest(
        format_version=FORMAT_VERSION,
        split=name,
        samples=kept,
        classes=len(source.class_names),
        class_names=source.class_names,
        image_size=image_size,
        policy=source.default_policy or _choose_policy(image_size),
        mean=[round(float(value), 6) for value in mean],
        std=[round(float(value), 6) for value in std],
        write_mode=write_mode,
        fingerprint=fingerprint(source.class_names, sample_ids, labels, digests[:, DECODED]),
        beton_bytes=written.bytes,
        tables_digest=written.tables_digest,
        digests_digest=sha256_of(digests_path(path)),
        names_digest=sha256_of(names_path(path)),
        made_from=made_from,
        skipped=[image._asdict() for image in skipped],
    )
    if train is not None:
        # Evaluation images have the size, policy and normalisation of the training images.
        manifest = replace(
            manifest,
            image_size=train.image_size,
            policy=train.policy,
            mean=train.mean,
            std=train.std,
        )
    manifest.save(path)
    return manifest


def _require_skipping(image: BadImage, options: PackOptions) -> None:
    if options.on_bad_image == "stop":
        raise DatasetError(
            f"{image.name} cannot be decoded: {image.reason}. Replace or remove it, or leave all "
            "such images out with --on-bad-image skip"
        )


def _report_skipped(
    name: str, skipped: list[BadImage], labels: npt.NDArray[np.int64], source: Source
) -> None:
    """Log which images were left out.

    Raises:
        DatasetError: if no image is left.
    """
    if not skipped:
        return
    first = f"{skipped[0].name} ({skipped[0].reason})"
    if not len(labels):
        raise DatasetError(
            f"none of the {len(skipped):,} images of {name} can be decoded, the first is {first}. "
            "Check that file, and whether SOURCE is right"
        )
    logger.warning(
        "%s: %d images cannot be decoded and are skipped, the first is %s; %s.json lists them",
        name,
        len(skipped),
        first,
        name,
    )
    counts = np.bincount(labels, minlength=len(source.class_names))
    empty = [source.class_names[label] for label in np.flatnonzero(counts == 0)]
    if empty and name == "train":
        logger.warning("%d classes have no image left, the first is %s", len(empty), empty[0])


class _Probe(NamedTuple):
    """Estimates from a few images at regular distances in a split."""

    largest_side: int
    """Maximum height or width in pixels after --max-resolution; 0 if no image was decoded."""
    decoded_bytes: int
    """Size of the largest image as RGB, in bytes."""
    raw_bytes: int
    """Mean size of an image as RGB, in bytes."""
    file_bytes: int
    """Mean size of an image's file, in bytes."""


def _probe(split: Split, max_resolution: int | None) -> _Probe:
    # The sizes of images often vary, so the sample covers the whole split.
    sampled = np.unique(np.linspace(0, len(split.labels) - 1, 64).astype(np.int64))
    task = _Task(split, "raw", max_resolution)
    stored = {position: _store(task, position) for position in sampled.tolist()}
    images = {at: image for at, image in stored.items() if isinstance(image, StoredImage)}
    if not images:
        return _Probe(0, 0, 0, 0)
    sizes = [len(image.content) for image in images.values()]
    files = [len(split.read(position)) for position in images]
    return _Probe(
        largest_side=max(max(image.height, image.width) for image in images.values()),
        decoded_bytes=max(sizes),
        raw_bytes=sum(sizes) // len(sizes),
        file_bytes=sum(files) // len(files),
    )


def _choose_write_mode(probe: _Probe, options: PackOptions) -> Literal["raw", "jpg"]:
    if options.write_mode != "auto":
        return options.write_mode
    return "raw" if probe.largest_side <= MAX_SMALL_IMAGE_SIZE else "jpg"


def _choose_image_size(sides: npt.NDArray[np.int64]) -> int:
    """Return the images' own size if all are square, small and equally large; else 32 or 224."""
    largest = int(sides.max())
    if largest > MAX_SMALL_IMAGE_SIZE:
        return 224
    return largest if (sides == largest).all() else 32


def _choose_policy(image_size: int) -> str:
    return "pad-crop(4, flip=True)" if image_size <= MAX_SMALL_IMAGE_SIZE else "rrc"


class _Task(NamedTuple):
    """The settings of a worker process, which do not change while it runs."""

    split: Split
    write_mode: Literal["raw", "jpg"]
    max_resolution: int | None


class _Workload(NamedTuple):
    """The division of a split among workers, which does not affect the beton."""

    task: _Task
    workers: int
    images_per_task: int
    need: ResourceEstimate


def _plan(
    split: Split, probe: _Probe, write_mode: Literal["raw", "jpg"], options: PackOptions
) -> _Workload:
    count = len(split.labels)
    stored_bytes = max(probe.raw_bytes if write_mode == "raw" else probe.file_bytes, 1)
    cores = available_cores()
    enough = count * (_IMAGE_COST_BYTES + probe.raw_bytes) // _WORTH_A_WORKER_BYTES
    workers = options.num_workers or min(cores, max(1, enough))
    images_per_task = min(
        _MAX_IMAGES_PER_TASK,
        max(1, _TASK_BYTES // stored_bytes),
        -(-count // (_TASKS_PER_WORKER * workers)),
    )
    need = ResourceEstimate(
        samples=count,
        stored=stored_bytes,
        decoded=probe.decoded_bytes,
        split=len(pickle.dumps(split)),
        queue=_TASKS_PER_WORKER * images_per_task * stored_bytes,
    )
    task = _Task(split, write_mode, options.max_resolution)
    return _Workload(task, workers, images_per_task, need)


def _stored_images(split: Split, workload: _Workload) -> Iterator[StoredImage | BadImage]:
    """Yield every image of a split in order, decoded and encoded by worker processes.

    With one worker, this process does the work itself.
    """
    count, step = len(split.labels), workload.images_per_task
    if workload.workers == 1:
        yield from (_store(workload.task, position) for position in range(count))
        return
    tasks = iter(range(0, count, step))
    # Not fork: this process has threads (numpy's, FFCV's), and a fork would copy their locks.
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(workload.workers, context, _start_worker, (workload.task,)) as pool:
        # A short queue keeps the workers busy and limits memory.
        pending: deque[Future[list[StoredImage | BadImage]]] = deque()
        longest = _TASKS_PER_WORKER * workload.workers
        try:
            while True:
                while len(pending) < longest and (first := next(tasks, None)) is not None:
                    pending.append(_submit(pool, first, min(first + step, count)))
                if not pending:
                    return
                yield from pending.popleft().result()
        except BrokenProcessPool as error:
            # The pool ends the workers that it had when it broke, but waits for any started since.
            for worker in set(multiprocessing.active_children()) - others:
                worker.kill()
            raise DatasetError(
                "a pack worker was killed or could not start; memory may have run out, or the "
                "script that calls pack runs it at import. Use fewer with --num-workers, or "
                "smaller images with --max-resolution; in a script, call pack below "
                'if __name__ == "__main__":'
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _submit(
    pool: ProcessPoolExecutor, first: int, end: int
) -> Future[list[StoredImage | BadImage]]:
    try:
        return pool.submit(_store_some, first, end)
    except OSError as error:  # submit starts workers, which fails if the pool is breaking
        raise BrokenProcessPool(str(error)) from error


_worker_task: _Task


def _start_worker(task: _Task) -> None:
    global _worker_task  # noqa: PLW0603  (a worker process has only one task)
    _worker_task = task
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101  (every worker has one)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    """End this worker when the packing process has ended; otherwise it would wait forever."""
    parent.join()
    os._exit(1)


def _store_some(first: int, end: int) -> list[StoredImage | BadImage]:
    return [_store(_worker_task, position) for position in range(first, end)]


def _store(task: _Task, position: int) -> StoredImage | BadImage:
    """Return the stored form of an image, or why it cannot be decoded.

    Raises:
        DatasetError: if its file cannot be read. That does not mean that the image is bad: a disk
            or a network may fail for a while.
    """
    split = task.split
    try:
        content = split.read(position)
    except DatasetError as error:
        return BadImage(position, split.name(position), str(error))
    except Exception as error:  # raised by the file system, or by the format of a table
        raise DatasetError(
            f"{split.name(position)} cannot be read: {error}. Check its disk and permissions"
        ) from error
    try:
        return store_image(content, write_mode=task.write_mode, max_resolution=task.max_resolution)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  (Pillow's plugins raise almost anything)
        reason = " ".join(str(error).split()) or type(error).__name__
        return BadImage(position, split.name(position), reason)


def _result(workspace: Workspace, splits: dict[str, Split]) -> PackResult:
    betons = {split: open_beton(workspace.beton(split)) for split in splits}
    return PackResult(
        fingerprint=betons["train"].manifest.fingerprint,
        train=betons["train"],
        val=betons.get("val"),
        skipped=sum(len(beton.manifest.skipped) for beton in betons.values()),
    )
