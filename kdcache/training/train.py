"""`kdcache train`: a student on a subset, with the cached logits of a teacher."""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.data.beton import LARGEST_SMALL_SIZE, Beton, open_beton
from kdcache.data.repack import require_samples_of, subset_beton
from kdcache.data.views import default_views
from kdcache.errors import CacheMismatchError, ConfigError
from kdcache.loader.distill import DistillLoader, require_same_data
from kdcache.options import TrainOptions
from kdcache.progress import logger
from kdcache.reader.probe import PROBE_VIEWS, probe_ids, probe_pixels
from kdcache.selection.subset import Subset
from kdcache.store.codecs.dense import Dense, Float32
from kdcache.store.decide import fidelity_of
from kdcache.store.fidelity import LARGEST_ANGLE_DEGREES, NORM_RATIOS
from kdcache.store.logit_store import LogitStore
from kdcache.teacher.forward import resolve_device
from kdcache.training.optim import (
    default_batch_size,
    default_epochs,
    default_lr,
)
from kdcache.training.run import default_precision, require_model, run_training
from kdcache.training.run_folder import run_folder, write_config
from kdcache.training.trainer import TrainSettings
from kdcache.workspace import Workspace

LEAST_EPOCHS, LEAST_STEPS = 30, 1_000
"""Of a student, when the user does not say."""


def train(options: TrainOptions) -> dict[str, Any]:
    """Train a student on a subset with the cached logits of a teacher.

    Returns:
        `top1`, `top1_best`, `top5` (percent; None without an evaluation split), `samples`,
        `teacher_forwards` (measured), `images_per_second`, `seconds`, `resumed_from_epoch`, `path`.

    Raises:
        ConfigError: if a setting is outside its range, nothing is selected, or the run folder is
            there and --resume is not given.
        CacheMismatchError: if store or subset are of other data.
        TrainingError: if the loss is not finite.
    """
    started = time.perf_counter()
    require_model(options.model)
    workspace = Workspace(options.workspace)
    device = resolve_device(options.device)
    beton, subset_path, subset = _open_data(workspace, options)
    store = _open_store(workspace, options, beton)
    views = store.manifest.views if store else default_views(beton.manifest)
    model_name = options.model or _default_student(views.image_size)
    num_samples = len(beton) if subset is None else len(subset)
    batch_size = options.batch_size or default_batch_size(num_samples)
    settings = TrainSettings(
        epochs=options.epochs
        or default_epochs(
            num_samples,
            batch_size,
            least_epochs=LEAST_EPOCHS,
            least_steps=LEAST_STEPS,
        ),
        lr=options.lr or default_lr(batch_size, model_name),
        alpha=options.alpha,
        temperature=options.temperature,
        reshape=options.reshape,
        precision=default_precision(options.precision, device),
    )
    distils = options.kd
    config = {
        "model": model_name,
        "batch_size": batch_size,
        "seed": options.seed,
        **asdict(settings),
        "kd": distils,
        "order": options.order,
        "policy": str(views.policy),
        "view_seed": views.seed,
        "image_size": views.image_size,
        "data_fingerprint": beton.manifest.data_fingerprint,
        "subset": "full" if subset_path is None else subset_path.stem,
        "samples": num_samples,
        "sample_ids_digest": None if subset is None else _digest(subset),
        "teacher_digest": store.manifest.teacher_digest if store and distils else None,
        "codec": store.manifest.codec if store and distils else None,
        "views": store.num_views if store and distils else None,
    }
    # Before anything is written: it refuses what does not fit together.
    if store and distils:
        _check_pixels(beton, store, options)
        _check_codec(store, options.temperature)
    loader = DistillLoader(
        beton,
        store if distils else None,
        subset,
        batch_size=batch_size,
        seed=options.seed,
        device=device,
        num_workers=options.num_workers,
        order=options.order,
        views=None if distils else views,
        epochs=settings.epochs,
    )
    subset_name = "full" if subset_path is None else subset_path.stem
    name = f"{model_name}-{subset_name}-s{options.seed}" + ("" if distils else "-no-kd")
    run_dir = run_folder(workspace, name, options)
    write_config(run_dir, config, device, resume=options.resume)
    logger.info(
        "student %s on %s of %s samples, batch %d, %d epochs, lr %g, alpha %g, T %g, %s -> %s",
        model_name,
        f"{num_samples:,}",
        f"{len(beton):,}",
        batch_size,
        settings.epochs,
        settings.lr,
        settings.alpha if distils else 0.0,
        settings.temperature,
        f"store {store.path}, V = {store.num_views}" if store and distils else "no KD",
        run_dir,
    )
    if store and distils and store.num_views == 0:
        logger.warning(
            "%s holds the clean view alone, but the student sees augmented ones: the teacher "
            "answers other pixels than the student's, which is known to be worse. "
            "Run kdcache build-logits with --views 8",
            store.path,
        )
    result = run_training(
        model_name, loader, settings, workspace, options, run_dir, resume=options.resume
    )
    return result | {
        "samples": num_samples,
        "seconds": round(time.perf_counter() - started, 3),
        "path": str(run_dir.resolve()),
    }


def _open_store(workspace: Workspace, options: TrainOptions, beton: Beton) -> LogitStore | None:
    """Return the store; without KD it still says how views are made, where there is one."""
    asked = options.teacher or options.store
    if not options.kd and asked is None and workspace.recall("store") is None:
        return None
    store = LogitStore.open(workspace.require_store(options.teacher, options.store))
    require_same_data(beton, store)
    return store


def _check_pixels(beton: Beton, store: LogitStore, options: TrainOptions) -> None:
    """Compare a few views with those that the teacher answered for."""
    is_other_data = store.manifest.data_fingerprint != beton.manifest.data_fingerprint
    if is_other_data or not len(store.pixel_probe):
        return  # of other data the loader speaks
    probed = probe_ids(np.arange(store.manifest.samples))
    is_here = np.isin(probed, beton.sample_ids)
    if not is_here.any():
        logger.warning(
            "%s holds none of the %d samples whose pixels %s can check: whether this machine "
            "decodes the teacher's pixels is not known",
            beton.path,
            len(probed),
            store.path,
        )
        return
    found = probe_pixels(
        beton, store.manifest.views, sample_ids=probed[is_here], num_workers=options.num_workers
    )
    wanted = store.pixel_probe[np.repeat(is_here, len(PROBE_VIEWS))]
    differ = int((found != wanted).any(axis=1).sum())
    if not differ:
        return
    message = (
        f"{differ} of {len(found)} probed views are decoded to other pixels than those that the "
        f"teacher of {store.path} answered for, expected none: libjpeg-turbo or OpenCV are of "
        "another build here"
    )
    if options.pixels == "warn":
        logger.warning("%s", message)
        return
    raise CacheMismatchError(
        f"{message}. Run kdcache build-logits --overwrite here, or go on with --pixels warn"
    )


def _check_codec(store: LogitStore, temperature: float) -> None:
    """Measure what the store's codec does to the gradient at the temperature that it is used at."""
    if isinstance(store.codec, (Dense, Float32)):
        return
    if store.codec.bound_to not in {None, temperature}:
        raise ConfigError(
            f"--temperature is {temperature:g}, expected {store.codec.bound_to:g}: the rows of "
            f"{store.path} are {store.codec}, drawn for that temperature alone. Build a store with "
            f"another --codec for this one"
        )
    found = fidelity_of(store, temperature)
    if not found.is_accepted:
        logger.warning(
            "%s is stored as %s, which at T = %g turns the distillation gradient by %.1f degrees "
            "and scales it by %.2f, expected at most %g degrees and %g to %g. Use another "
            "--temperature, or build a store with --codec dense",
            store.path,
            store.codec,
            temperature,
            found.angle_degrees,
            found.norm_ratio,
            LARGEST_ANGLE_DEGREES,
            *NORM_RATIOS,
        )


def _open_data(
    workspace: Workspace, options: TrainOptions
) -> tuple[Beton, Path | None, Subset | None]:
    """Return the beton to read, and the subset; its own beton where `kdcache pack` made one."""
    if options.subset is None and workspace.recall("subset") is None:
        workspace.require_beton()  # where nothing is packed, that comes before selecting
    path = workspace.require_subset(options.subset)
    if path is None:
        return open_beton(workspace.require_beton()), None, None
    packed = subset_beton(path)
    beton = open_beton(packed if packed.exists() else workspace.require_beton())
    subset = Subset.load_of(path, beton.manifest.data_fingerprint)
    if beton.manifest.is_subset:
        require_samples_of(beton, path, subset.sample_ids)
    return beton, path, subset


def _digest(subset: Subset) -> str:
    return hashlib.sha256(subset.sample_ids.tobytes()).hexdigest()


def _default_student(image_size: int) -> str:
    return "resnet8" if image_size <= LARGEST_SMALL_SIZE else "resnet18"
