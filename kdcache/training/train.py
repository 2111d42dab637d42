"""`kdcache train`: train students on a subset with the cached logits of a teacher."""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict, replace
from pathlib import Path

from kdcache.compute.device import resolve_device
from kdcache.data.beton import Beton
from kdcache.data.policy import MAX_SMALL_IMAGE_SIZE
from kdcache.data.views import Views, default_views
from kdcache.errors import CacheMismatchError
from kdcache.loader.distill import DistillLoader
from kdcache.loader.live import LiveLoader
from kdcache.options import TrainOptions
from kdcache.progress import counted, logger
from kdcache.rng import keeps_torch_rng
from kdcache.selection.subset import Subset
from kdcache.store.logit_store import LogitStore
from kdcache.training.inputs import num_samples_before_pruning, open_data, open_store
from kdcache.training.live_teacher import open_live_teacher
from kdcache.training.losses.alpha import AUTO_RULE
from kdcache.training.losses.settings import LossSettings
from kdcache.training.optim import default_batch_size
from kdcache.training.results import RunResult, TrainResult
from kdcache.training.run import loop_settings, require_model, run_training
from kdcache.training.run_folder import run_folder, write_config
from kdcache.training.seeds import train_seeds
from kdcache.training.store_checks import check_codec, check_pixels
from kdcache.workspace import Workspace, teacher_name

MIN_EPOCHS, MIN_STEPS = 30, 1_000
"""Minimum of a student's default length."""


@keeps_torch_rng
def train(options: TrainOptions) -> TrainResult:
    """Train a student on a subset with the cached logits of a teacher, or one for each seed.

    Raises:
        ConfigError: if a setting is outside its range, nothing is selected, or the run folder
            exists and --resume is not given.
        CacheMismatchError: if store, subset or checkpoint belong to other data or another run.
        TrainingError: if a loss is not finite, or the run folder cannot be written.
    """
    return train_seeds(_train_one, options)


def _views(options: TrainOptions, store: LogitStore | None, beton: Beton) -> Views:
    """Return the store's views, or the data set's without a store.

    Raises:
        CacheMismatchError: if an option asks for other pixels than the teacher saw.
    """
    if store is None:
        return default_views(
            beton.manifest, definition=options.pixel_definition, decode=options.decode
        )
    views = store.manifest.views
    for name, found in (("pixel_definition", views.definition), ("decode", views.decode)):
        given = getattr(options, name)
        if given not in (None, found):
            raise CacheMismatchError(
                parameter=name,
                value=given,
                problem=f"the teacher of {store.path} saw pixels with {name} {found}",
                remedy="Leave the option out, or build a store with it",
            )
    return views


def _train_one(options: TrainOptions) -> RunResult:
    started = time.perf_counter()
    require_model(options.model)
    loss = LossSettings.of(options)
    workspace = Workspace(Path(options.workspace))
    device = resolve_device(options.device)
    beton, subset_path, subset = open_data(workspace, options)
    store = open_store(workspace, options, beton)
    views = _views(options, store, beton)
    samples_of_all = num_samples_before_pruning(store, beton, loss)
    if options.live_teacher is not None or not options.kd:
        store = None  # only its views were needed
    model_name = options.model or _default_student(views.image_size)
    # All samples of the beton; the loader reports samples that have no row in the store.
    sample_ids = beton.sample_ids if subset is None else subset.sample_ids
    num_samples = len(sample_ids)
    batch_size = options.batch_size or default_batch_size(num_samples)
    settings = replace(
        loop_settings(
            options,
            model_name=model_name,
            num_samples=num_samples,
            batch_size=batch_size,
            device=device,
            min_epochs=MIN_EPOCHS,
            min_steps=MIN_STEPS,
        ),
        loss=loss.for_keep(num_samples / samples_of_all),
    )
    if loss.alpha.kind == "auto":
        logger.info("alpha auto: %s, a placeholder rule, not measured yet", AUTO_RULE)
    teacher = open_live_teacher(options, workspace, beton, views, device=device)
    subset_name = "full" if subset_path is None else subset_path.stem
    config = {
        "model": model_name,
        "batch_size": batch_size,
        "seed": options.seed,
        **(asdict(settings) | settings.loss.content),
        "kd": options.kd,
        "order": options.order,
        "policy": str(views.policy),
        "view_seed": views.seed,
        "image_size": views.image_size,
        "pixel_definition": views.definition,
        "decode": views.decode,
        "data_fingerprint": beton.manifest.data_fingerprint,
        "subset": subset_name,
        "samples": num_samples,
        "sample_ids_digest": None if subset is None else _digest(subset),
        "live_teacher": None if options.live_teacher is None else str(options.live_teacher),
        "teacher_digest": teacher.digest if teacher else None,
        "store_digest": None,
        "codec": None,
        "views": options.views,
    }
    # These checks come before anything is written.
    if store:
        config |= {
            "teacher_digest": store.manifest.teacher_digest,
            "store_digest": store.manifest.digest(),
            "codec": store.manifest.codec,
            "views": store.num_views if options.views is None else options.views,
        }
        check_pixels(beton, store, options)
        check_codec(store, settings.loss)
    if teacher:
        config |= {
            "teacher_mean": teacher.mean,
            "teacher_std": teacher.std,
            "teacher_size": teacher.image_size,
        }
        loader: DistillLoader = LiveLoader(
            beton,
            teacher.forward,
            sample_ids,
            batch_size=batch_size,
            seed=options.seed,
            num_views=options.views,
            num_workers=options.num_workers,
            order=options.order,
            views=views,
            teacher_size=teacher.image_size,
            epochs=settings.epochs,
        )
    else:
        loader = DistillLoader(
            beton,
            store,
            sample_ids,
            batch_size=batch_size,
            seed=options.seed,
            device=device,
            num_workers=options.num_workers,
            order=options.order,
            views=None if store else views,
            num_views=options.views,
            epochs=settings.epochs,
        )
    arm = "-live" if teacher else "" if options.kd else "-no-kd"
    name = f"{teacher_name(model_name)}-{subset_name}-s{options.seed}{arm}"
    folder = run_folder(workspace, name, options)
    write_config(folder.path, config, device, resume=folder.holds_run)
    logger.info(
        "student %s on %s of %s samples, batch %d, %s, %s, lr %g, %s, %s -> %s",
        model_name,
        f"{num_samples:,}",
        f"{len(beton):,}",
        batch_size,
        counted(settings.epochs, "epoch"),
        settings.optimizer,
        settings.lr,
        settings.loss if options.kd else settings.loss.labels_alone(),
        _source_of_logits(store, options),
        folder.path,
    )
    if store and loader.num_views == 0:
        logger.warning(
            "only the logits of the clean view are used from %s, but the student sees "
            "augmented views. This mismatch of pixels is known to be worse. Run "
            "kdcache build-logits with --views 8, and train without --views 0",
            store.path,
        )
    result = run_training(
        model_name, loader, settings, workspace, options, folder.path, resume=folder.holds_run
    )
    workspace.remember("run", folder.path)
    return RunResult(
        top1=result.last.top1 if result.last else None,
        top1_best=result.top1_best,
        top5=result.last.top5 if result.last else None,
        top1_ema=result.ema.top1 if result.ema else None,
        teacher_forwards=result.teacher_forwards,
        student_forwards=result.student_forwards,
        steps=result.steps,
        images_per_second=round(result.images_per_second, 1),
        resumed_from_epoch=result.resumed_from_epoch,
        samples=num_samples,
        seconds=round(time.perf_counter() - started, 3),
        path=folder.path.resolve(),
    )


def _source_of_logits(store: LogitStore | None, options: TrainOptions) -> str:
    if store:
        views = store.num_views if options.views is None else options.views
        return f"store {store.path}, V = {views}"
    if options.live_teacher is None:
        return "no KD"
    return f"live teacher {options.live_teacher}, V = {options.views or 'epochs'}"


def _digest(subset: Subset) -> str:
    return hashlib.sha256(subset.sample_ids.tobytes()).hexdigest()


def _default_student(image_size: int) -> str:
    return "resnet8" if image_size <= MAX_SMALL_IMAGE_SIZE else "resnet18"
