"""`kdcache pack`: write betons from a source of images, or from the kept samples of a packed one.

Worker processes decode and encode; this process writes in the order of the samples. If an image
cannot be decoded, the pack stops with its name and leaves nothing behind, or skips and lists it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from kdcache.data.beton import open_beton
from kdcache.data.beton_manifest import (
    FORMAT_VERSION,
    BetonManifest,
    fingerprint,
    manifest_path,
    names_path,
)
from kdcache.data.beton_writer import write_beton
from kdcache.data.digests import (
    DECODED,
    DIGEST_BYTES,
    digests_path,
    load_digests,
    save_digests,
)
from kdcache.data.duplicates import describe_duplicates
from kdcache.data.names import save_names
from kdcache.data.outcome import describe
from kdcache.data.pack_plan import choose_write_mode, plan_workload, probe_split
from kdcache.data.pack_result import PackPreview, PackResult
from kdcache.data.pack_tasks import BadImage, stored_images
from kdcache.data.policy import MAX_SMALL_IMAGE_SIZE
from kdcache.data.repack import pack_subset
from kdcache.data.resources import require_resources
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
        packed = open_beton(
            pack_subset(workspace, str(options.subset), overwrite=options.overwrite)
        )
        return PackResult(
            fingerprint=packed.manifest.fingerprint, betons={"train": packed}, skipped=0
        )
    assert options.source is not None  # noqa: S101  (the options require it)
    val_source = None if options.val_source is None else str(options.val_source)
    source = open_source(
        str(options.source),
        val_source=val_source,
        label_key=options.label_key,
        classes=options.classes,
        compact_labels=options.compact_labels,
    )
    for note in source.notes:
        logger.info("%s", note)
    if options.dry_run:
        return _preview(source, options)
    splits = split_train_val(source, options.val_fraction, options.seed)
    made_from = source.identity | {
        "label_key": options.label_key,
        "classes": options.classes,
        "compact_labels": options.compact_labels or None,
        "on_bad_image": options.on_bad_image,
        "val_fraction": options.val_fraction,
        "seed": options.seed,
        "write_mode": options.write_mode,
        "max_resolution": options.max_resolution,
        "max_image_pixels": options.max_image_pixels,
    }
    if _is_up_to_date(workspace, splits, made_from, overwrite=options.overwrite):
        logger.info("up to date: %s", workspace.beton("train"))
        return _result(workspace, splits)
    for warning in describe(source, splits):
        logger.warning("%s", warning)
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
    _report_duplicates(workspace, splits)
    return _result(workspace, splits)


def _preview(source: Source, options: PackOptions) -> PackResult:
    """Return what a pack would do, without writing anything."""
    must_be_divided = "val" not in source.splits and options.val_fraction is None
    splits = source.splits
    if not must_be_divided or source.default_val_fraction is not None:
        splits = split_train_val(source, options.val_fraction, options.seed)
    warnings = describe(source, splits)
    for warning in warnings:
        logger.warning("%s", warning)
    counts = {
        name: np.bincount(split.labels, minlength=len(source.class_names))
        for name, split in splits.items()
    }
    preview = PackPreview(
        samples={name: len(split.labels) for name, split in splits.items()},
        class_names=tuple(source.class_names),
        class_sizes={name: tuple(count.tolist()) for name, count in counts.items()},
        left_out=tuple(source.left_out),
        notes=tuple(source.notes),
        warnings=tuple(warnings),
    )
    return PackResult(fingerprint=None, betons={}, skipped=0, preview=preview)


def _report_duplicates(workspace: Workspace, splits: dict[str, Split]) -> None:
    """Warn of images that are in both splits, or in one split with two labels."""
    betons = {name: open_beton(workspace.beton(name)) for name in splits}
    digests = {name: load_digests(beton.path)[:, DECODED] for name, beton in betons.items()}
    labels = {name: beton.labels for name, beton in betons.items()}

    def name_of(split: str, sample_id: int) -> str:
        skipped = np.array([image["position"] for image in betons[split].manifest.skipped])
        kept = np.setdiff1d(np.arange(len(splits[split].labels)), skipped)
        return splits[split].name(int(kept[sample_id]))

    for line in describe_duplicates(digests, labels, name_of):
        logger.warning("%s", line)


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
    probe = probe_split(split, options)
    write_mode = choose_write_mode(probe, options) if train is None else train.write_mode
    workload = plan_workload(split, probe, write_mode, options)
    require_resources(workload.need, workload.workers, path.parent)
    logger.info("%s: %s images as %s", name, f"{count:,}", write_mode)

    def samples() -> Iterator[tuple[StoredImage, int, int]]:
        nonlocal sums
        with progress_bar(total=count, unit="image", description=f"pack {name}") as bar:
            stored = stored_images(split, workload)
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
        classes = "class has" if len(empty) == 1 else "classes have"
        logger.warning("%d %s no image left, the first is %s", len(empty), classes, empty[0])


def _choose_image_size(sides: npt.NDArray[np.int64]) -> int:
    """Return the images' own size if all are square, small and equally large; else 32 or 224."""
    largest = int(sides.max())
    if largest > MAX_SMALL_IMAGE_SIZE:
        return 224
    return largest if (sides == largest).all() else 32


def _choose_policy(image_size: int) -> str:
    return "pad-crop(4, flip=True)" if image_size <= MAX_SMALL_IMAGE_SIZE else "rrc"


def _result(workspace: Workspace, splits: dict[str, Split]) -> PackResult:
    betons = {split: open_beton(workspace.beton(split)) for split in splits}
    return PackResult(
        fingerprint=betons["train"].manifest.fingerprint,
        betons=betons,
        skipped=sum(len(beton.manifest.skipped) for beton in betons.values()),
    )
