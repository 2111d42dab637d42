"""`kdcache build-logits`: one pass of the teacher over all data, into a store."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdcache.data.beton import Beton, open_beton
from kdcache.errors import ConfigError
from kdcache.files import file_lock
from kdcache.options import BuildLogitsOptions
from kdcache.progress import logger
from kdcache.reader.batches import workers_of_rank
from kdcache.store.accounting import store_bytes
from kdcache.store.codec_file import is_decided
from kdcache.store.codecs.request import CodecRequest
from kdcache.store.decide import decide_codec
from kdcache.store.layout import FEATURES, is_complete
from kdcache.store.location import size_bytes
from kdcache.store.logit_store import LogitStore
from kdcache.store.manifest import (
    StoreManifest,
)
from kdcache.store.opening import (
    conditions_here,
    has_features,
    open_writer,
    store_location,
    store_lock,
)
from kdcache.store.plan import Part, missing_work, rows_of_views, wanted_manifest
from kdcache.store.teacher_check import check_teacher
from kdcache.store.teacher_pass import Answers, require_finite, run_teacher
from kdcache.store.writer import StoreWriter
from kdcache.teacher.forward import TeacherForward, resolve_device
from kdcache.teacher.scores import SCORES, STATS
from kdcache.teacher.teacher import open_teacher
from kdcache.workspace import Workspace

WAIT_SECONDS = 0.2
"""Between two looks at what other ranks have made."""


def build_logits(options: BuildLogitsOptions) -> dict[str, Any]:
    """Run the teacher over the clean view of all data, and V augmented views of all or a subset.

    Returns:
        `samples`, `views`, `rows` (of each view from 1), `teacher_forwards` (images whose answers
        this call stored; the rehearsal of one batch before a new store is made, and the evaluation
        split, are not among them), `train_quality` and `val_quality` (of the teacher, measured
        where this call built something: `top1` and `top5` in percent, `nll`, `ece`; else None),
        `bytes`, `seconds` and `path`.

    Raises:
        ConfigError: if the teacher or the device does not exist.
        DatasetError: if nothing is packed, or an image cannot be decoded.
        TeacherError: if the teacher does not fit the data, or answers with inf or nan.
        CacheMismatchError: if the store was built from something else; names the fields.
        KDCacheError: if another process is building this store.
    """
    CodecRequest.parse(options.codec)  # what is asked wrongly is said before anything is read
    workspace = Workspace(options.workspace)
    beton = open_beton(workspace.require_beton())
    rows = rows_of_views(options, workspace, beton)
    return build_store(options, workspace, beton, rows)


def build_store(
    options: BuildLogitsOptions, workspace: Workspace, beton: Beton, rows: npt.NDArray[np.int64]
) -> dict[str, Any]:
    """Do what `build_logits` does, for views of given samples.

    Args:
        options: of the command; `subset` gives the store its name alone.
        workspace: where teachers and stores lie.
        beton: the training images.
        rows: (M,) sample ids of the views from 1, sorted.
    """
    started = time.perf_counter()
    device = resolve_device(options.device)
    teacher = open_teacher(
        workspace.require_teacher(options.teacher),
        arch=options.arch,
        workspace=workspace,
        data=beton.manifest,
        image_size=options.image_size or beton.manifest.image_size,
    )
    location = store_location(options, workspace, teacher.name)
    part = Part.parse(options.part, os.environ)
    if options.overwrite and not part.is_whole:
        raise ConfigError(
            f"--overwrite is given to part {part.number + 1}/{part.of}, expected none: each part "
            f"would replace what the others made. Remove {location} first"
        )
    lock = store_lock(location, workspace)
    with file_lock(lock, purpose="build-logits", shared=not part.is_whole):
        wanted = wanted_manifest(options, beton, teacher, device, location, rows)
        forward = TeacherForward(
            teacher.model,
            num_classes=wanted.classes,
            mean=wanted.mean,
            std=wanted.std,
            device=device,
            precision=wanted.precision,
            keep_features=options.features or has_features(options, location),
        )
        # One part makes the store, the others find it.
        with file_lock(lock.with_suffix(".new.lock"), purpose="build-logits", wait=True):
            writer = open_writer(options, location, wanted, beton, rows, workspace, forward)
        logger.info(
            "teacher %s (%s, sha256 %s), %d views of %s samples, %s, codec %s -> %s",
            teacher.name,
            teacher.arch,
            teacher.digest[:12],
            options.views,
            f"{len(rows):,}",
            wanted.policy,
            wanted.codec,
            location,
        )
        forwards = _fill(options, writer, wanted, beton, forward, part)
        is_whole = all(is_complete(writer.group, view) for view in range(writer.num_views + 1))
        quality = {"train": None, "val": None}
        if forwards and is_whole and part.number == 0:
            quality = check_teacher(
                LogitStore.open(location),
                forward,
                workspace.beton("val"),
                stated_top1=teacher.stated_top1,
            )
    if is_whole:
        workspace.remember("store", location)
    return {
        "samples": wanted.samples,
        "views": writer.num_views,
        "rows": wanted.rows,
        "teacher_forwards": forwards,
        "train_quality": quality["train"],
        "val_quality": quality["val"],
        "bytes": size_bytes(location),
        "seconds": round(time.perf_counter() - started, 3),
        "path": str(location),
    }


def _fill(
    options: BuildLogitsOptions,
    writer: StoreWriter,
    wanted: StoreManifest,
    beton: Beton,
    forward: TeacherForward,
    part: Part,
) -> int:
    """Make what is missing; return the images whose answers were stored."""
    forwards = 0
    for first, last in _phases(writer, options.views):
        if first == 1 and part.others_run:
            # The first rank decides the codec when all have made their shards of view 0.
            _wait(
                lambda: (
                    is_decided(writer.group, writer.manifest)
                    or (part.number == 0 and not writer.missing_shards(0))
                )
            )
        if first == 1 and not is_decided(writer.group, writer.manifest):
            if unfinished := writer.missing_shards(0):
                logger.warning(
                    "view 0 of %s lacks %d shards, which other parts make: bring the parts "
                    "together with kdcache merge, then run this again; the codec of the other "
                    "views is decided from all of view 0",
                    writer.path,
                    len(unfinished),
                )
                return forwards
            decide_codec(writer)
        writer.add_views(last)
        work = missing_work(writer, range(first, last + 1), part)
        forwards += sum(len(shard.rows) for shard in work)
        if work:
            logger.info(
                "%s images through the teacher; %s bytes when views 0 to %d are whole",
                f"{sum(len(shard.rows) for shard in work):,}",
                f"{_expected_bytes(writer, last):,}",
                last,
            )
            conditions = conditions_here(writer, wanted, allow_mixed=options.allow_mixed)
            for answers in run_teacher(
                forward,
                work,
                beton,
                writer.manifest.views,
                batch_size=wanted.batch_size,
                num_workers=options.num_workers or workers_of_rank(),
            ):
                _commit(writer, answers, conditions)
        for view in range(first, last + 1):
            if not writer.missing_shards(view):
                writer.finish_view(view)
    if part.others_run and part.number == 0:
        _wait(lambda: all(is_complete(writer.group, view) for view in range(last + 1)))
    if not forwards:
        logger.info("up to date: %s", writer.path)
    return forwards


def _wait(is_done: Callable[[], bool]) -> None:
    """Wait for other ranks; torchrun ends this one when one of them fails."""
    while not is_done():
        time.sleep(WAIT_SECONDS)


def _expected_bytes(writer: StoreWriter, num_views: int) -> int:
    """Return what the store will take, to 1 % from a few MB on."""
    about = writer.manifest
    return store_bytes(
        writer.codec(num_views),
        writer.codec(0),
        num_samples=about.samples,
        num_rows=about.rows,
        num_views=num_views,
        shard_rows=about.shard_rows,
    )


def _phases(writer: StoreWriter, num_views: int) -> list[tuple[int, int]]:
    """Return the first and last view of each pass over the images.

    One pass where the codec is known, two where it is decided from the clean view.
    """
    last = max(num_views, writer.num_views)
    if is_decided(writer.group, writer.manifest) or last == 0:
        return [(0, last)]
    return [(0, 0), (1, last)]


def _commit(writer: StoreWriter, answers: Answers, conditions: dict[str, Any] | None) -> None:
    shard, logits = answers.shard, answers.logits
    codec = writer.codec(shard.view)
    require_finite(codec.representable(logits), shard)
    rows = codec.encode(logits, sample_ids=shard.rows, view=shard.view)
    per_sample: dict[str, npt.NDArray[np.generic]] = {}
    if shard.view == 0:
        for folder, functions in (("scores", SCORES), ("stats", STATS)):
            for name, function in functions.items():
                per_sample[f"{folder}/{name}"] = function(logits, answers.labels).cpu().numpy()
        if answers.features is not None:
            per_sample[FEATURES] = answers.features.to(torch.float16).cpu().numpy()
    writer.write_shard(shard.view, shard.number, rows, per_sample, conditions=conditions)
