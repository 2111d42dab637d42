"""`kdcache build-logits`: run the teacher once over all data and store its logits."""

from __future__ import annotations

import os
import time
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdcache.compute.device import resolve_device
from kdcache.data.beton import Beton, open_beton
from kdcache.data.policy import CENTER_CROP_RATIO, DEFAULT_DECODE, DEFAULT_DEFINITION
from kdcache.errors import CacheMismatchError, ConfigError
from kdcache.locks import file_lock
from kdcache.options import BuildLogitsOptions, as_names
from kdcache.progress import logger
from kdcache.rng import keeps_torch_rng
from kdcache.store.build.cost import format_duration
from kdcache.store.build.opening import open_existing, open_writer, store_location, store_lock
from kdcache.store.build.plan import Part
from kdcache.store.build.preflight import Preflight, run_preflight
from kdcache.store.build.shard_builder import ShardBuilder
from kdcache.store.build.target import rows_of_views, target_manifest
from kdcache.store.build.teacher_check import check_teacher
from kdcache.store.codecs.request import CodecRequest
from kdcache.store.format.layout import FEATURES, has_array, is_complete
from kdcache.store.format.location import size_bytes
from kdcache.store.logit_store import LogitStore
from kdcache.store.manifest import StoreManifest
from kdcache.store.report import BuildReport
from kdcache.teacher.ensemble import open_ensemble
from kdcache.teacher.member_settings import TeacherOptions
from kdcache.teacher.output_check import check_outputs
from kdcache.workspace import Workspace


def build_and_open(options: BuildLogitsOptions) -> LogitStore:
    """Build a store as `build_logits` does, and return it with the figures in `report`.

    Raises:
        CacheIncompleteError: if `part` is given and other parts of the store are missing; this part
            is built.
    """
    report = build_logits(options)
    store = LogitStore.open(report.path)
    store.report = report
    return store


@keeps_torch_rng
def build_logits(options: BuildLogitsOptions) -> BuildReport:
    """Run the teacher over the clean view of all data, and V augmented views of all or a subset.

    Raises:
        ConfigError: if the teacher or the device does not exist.
        DatasetError: if nothing is packed, or an image cannot be decoded.
        TeacherError: if the teacher does not fit the data or into memory, gives inf or nan, or
            gives other logits for the same image.
        WeightsError: if the teacher's file is damaged, or does not fit its model.
        CacheMismatchError: if the store was built from other inputs; names the fields.
        KDCacheError: if another process is building this store.
    """
    CodecRequest.parse(options.codec)  # report a wrong option before anything is read
    workspace = Workspace(Path(options.workspace))
    beton = open_beton(workspace.require_beton())
    rows = rows_of_views(options, workspace, beton)
    return build_store(options, workspace, beton, rows)


def build_store(
    options: BuildLogitsOptions, workspace: Workspace, beton: Beton, rows: npt.NDArray[np.int64]
) -> BuildReport:
    """Build a store whose augmented views cover the given samples; see `build_logits`.

    Args:
        options: options of the command; here `subset` only names the store.
        workspace: the folder of teachers and stores.
        beton: the training images.
        rows: (M,) sorted sample ids of the augmented views.
    """
    started = time.perf_counter()
    device = resolve_device(options.device)
    teacher = open_ensemble(
        workspace.require_teachers(as_names(options.teacher)),
        given=TeacherOptions.of(
            archs=as_names(options.arch),
            means=as_names(options.teacher_mean),
            stds=as_names(options.teacher_std),
            stems=as_names(options.stem),
            outputs=as_names(options.teacher_output),
        ),
        mode=options.ensemble,
        workspace=workspace,
        data=beton.manifest,
        image_size=options.image_size or beton.manifest.image_size,
        teacher_size=options.teacher_size,
    )
    location = store_location(options, workspace, teacher.name)
    part = Part.parse(options.part, os.environ)
    if options.overwrite and not part.is_whole:
        raise ConfigError(
            f"--overwrite is given to part {part.index + 1}/{part.count}, expected none: each part "
            f"would delete the shards of the others. Remove {location} first",
            parameter="overwrite",
            value=True,
        )
    lock = store_lock(location, workspace)
    with file_lock(lock, purpose="build-logits", shared=not part.is_whole):
        existing = open_existing(options, location, part)
        found = None if existing is None else existing.manifest
        wanted = target_manifest(options, beton, teacher, device, found, rows)
        forward = teacher.forward(
            num_classes=wanted.classes,
            device=device,
            precision=wanted.precision,
            keep_features=options.features
            or (existing is not None and has_array(existing.group, FEATURES)),
        )

        @cache
        def preflight() -> Preflight:
            val = _open_evaluation_split(workspace, beton)
            found = run_preflight(forward, beton, wanted.teacher_views, wanted.batch_size)
            check_outputs(
                teacher,
                forward,
                beton,
                wanted.teacher_views,
                batch_size=wanted.batch_size,
                num_forwards=wanted.samples + options.views * wanted.rows,
                val=val,
            )
            return found

        # One part creates the store; the others open it.
        with file_lock(lock.with_suffix(".new.lock"), purpose="build-logits", wait=True):
            writer = open_writer(
                options, location, part, existing, wanted, beton, rows, workspace, preflight
            )
        logger.info(
            "teacher %s (%s, sha256 %s)%s, %d views of %s samples, %s, codec %s -> %s",
            teacher.name,
            teacher.arch,
            teacher.digest[:12],
            _describe_unusual(wanted),
            options.views,
            f"{len(rows):,}",
            wanted.policy,
            wanted.codec,
            location,
        )
        builder = ShardBuilder(options, writer, wanted, beton, forward, part)
        cost = builder.cost(preflight)
        logger.info("%s", cost or f"up to date: {writer.path}")
        forwards, pass_seconds = builder.run()
        if cost and forwards == cost.forwards:
            spent = format_duration(pass_seconds), format_duration(cost.seconds)
            logger.info("the teacher pass took %s, expected about %s", *spent)
        is_whole = all(is_complete(writer.group, view) for view in range(writer.num_views + 1))
        train_quality, val_quality = None, None
        if forwards and is_whole and part.index == 0:
            train_quality, val_quality = check_teacher(
                LogitStore.from_group(writer.path, writer.group, writer.manifest),
                forward,
                workspace.beton("val"),
                reported_top1=teacher.reported_top1,
            )
    if is_whole:
        workspace.remember("store", location)
    return BuildReport(
        samples=wanted.samples,
        views=writer.num_views,
        rows=wanted.rows,
        teacher_forwards=forwards,
        cost=None if cost is None else cost.report(pass_seconds),
        train_quality=train_quality,
        val_quality=val_quality,
        bytes=size_bytes(location),
        seconds=round(time.perf_counter() - started, 3),
        path=location,
    )


def _open_evaluation_split(workspace: Workspace, beton: Beton) -> Beton | None:
    """Return the evaluation images; None if there are none.

    Raises:
        CacheMismatchError: if they have other classes than the training images.
    """
    path = workspace.beton("val")
    if not path.exists():
        return None
    val = open_beton(path)
    if val.manifest.class_names != beton.manifest.class_names:
        raise CacheMismatchError(
            f"{path} has other classes than {beton.path}, expected the same names in the same "
            "order. Pack both splits again from one source"
        )
    return val


def _describe_unusual(wanted: StoreManifest) -> str:
    """Describe settings that differ from the defaults, or return ""."""
    text = ""
    if wanted.ensemble:
        text += f", mean of {wanted.ensemble}"
    if wanted.teacher_size != wanted.image_size:
        text += f" at {wanted.teacher_size} px (student {wanted.image_size} px)"
    if wanted.center_crop_ratio != CENTER_CROP_RATIO:
        text += f", clean view of {wanted.center_crop_ratio:.4g} of the short side"
    if wanted.clean_filter != "bilinear":
        text += f", clean view resized with the {wanted.clean_filter} filter"
    if wanted.pixel_definition != DEFAULT_DEFINITION:
        text += f", pixels of {wanted.pixel_definition}"
    if wanted.decode != DEFAULT_DECODE:
        text += ", large boxes decoded at a smaller scale"
    return text
