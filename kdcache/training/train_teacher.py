"""`kdcache train-teacher`: train a teacher on all data with labels only."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kdcache.compute.device import resolve_device
from kdcache.data.beton import open_beton
from kdcache.data.views import default_views
from kdcache.errors import CacheMismatchError, ConfigError
from kdcache.identity import differences
from kdcache.loader.distill import DistillLoader
from kdcache.models.registry import default_stem, has_hidden_stem, make_model
from kdcache.models.weights import fill_model, load_weights, save_weights
from kdcache.options import TrainTeacherOptions
from kdcache.progress import counted, logger
from kdcache.rng import keeps_torch_rng
from kdcache.teacher.teacher import model_digest
from kdcache.training.checkpoint import CHECKPOINT
from kdcache.training.metrics import read_metrics
from kdcache.training.optim import default_batch_size
from kdcache.training.results import TrainTeacherResult
from kdcache.training.run import loop_settings, require_model, run_training
from kdcache.training.run_folder import as_json, has_same_config, write_config
from kdcache.training.saving import early_weights
from kdcache.workspace import Workspace, teacher_name

MIN_EPOCHS, MIN_STEPS = 10, 450
"""Minimum of a teacher's default length."""


@keeps_torch_rng
def train_teacher(options: TrainTeacherOptions) -> TrainTeacherResult:
    """Train a teacher on all data with labels only; with `ema`, keep its averaged weights.

    With `save_epochs`, the weights of these epochs become teachers NAME-epochE beside it.

    Raises:
        ConfigError: if a setting is outside its range.
        CacheMismatchError: if a teacher of this name was trained with other options or data.
        TrainingError: if a loss is NaN or infinite.
    """
    started = time.perf_counter()
    require_model(options.model)
    workspace = Workspace(Path(options.workspace))
    beton = open_beton(workspace.require_beton())
    device = resolve_device(options.device)
    data = beton.manifest
    views = default_views(
        data,
        policy=options.policy,
        seed=options.view_seed,
        image_size=options.image_size,
        definition=options.pixel_definition,
        decode=options.decode,
    )
    batch_size = options.batch_size or default_batch_size(len(beton))
    settings = loop_settings(
        options,
        model_name=options.model,
        num_samples=len(beton),
        batch_size=batch_size,
        device=device,
        min_epochs=MIN_EPOCHS,
        min_steps=MIN_STEPS,
    )
    about = {
        "arch": options.model,
        "classes": data.classes,
        "data_fingerprint": data.fingerprint,
        "image_size": views.image_size,
        "mean": data.mean,
        "std": data.std,
        "stem": default_stem(options.model, views.image_size),
        "policy": str(views.policy),
        "view_seed": views.seed,
        "pixel_definition": views.definition,
        "decode": views.decode,
        "seed": options.seed,
        "batch_size": batch_size,
        **as_json(asdict(settings)),
    }
    name = options.name or teacher_name(options.model)
    path = workspace.teacher(name)
    early = {epoch: workspace.teacher(f"{name}-epoch{epoch}") for epoch in options.early_epochs}
    if early and max(early) > settings.epochs:
        raise ConfigError(
            parameter="save_epochs",
            value=options.save_epochs,
            rule=f"epochs up to the last, {settings.epochs}",
        )
    if path.exists() and not options.overwrite:
        top1 = _require_same_teacher(path, about, early)
        return TrainTeacherResult(top1=top1, path=path.resolve(), seconds=0.0)
    run_dir = workspace.run(f"teacher-{name}")
    # A killed run of the same config continues; another config starts over in the folder.
    is_begun_here = has_same_config(run_dir, about) and not options.overwrite
    if is_begun_here and (missing := _missing_early_weights(run_dir, options.early_epochs)):
        logger.info(
            "%s is past epoch %d but lacks its weights: training starts again", run_dir, missing[0]
        )
        is_begun_here = False
    if not is_begun_here:
        for stale in run_dir.glob("*.safetensors"):
            stale.unlink()
    write_config(run_dir, about, device, resume=is_begun_here)
    logger.info(
        "teacher %s on %s samples, batch %d, %s, lr %g, %s",
        options.model,
        f"{len(beton):,}",
        batch_size,
        counted(settings.epochs, "epoch"),
        settings.lr,
        views.policy,
    )
    loader = DistillLoader(
        beton,
        None,
        batch_size=batch_size,
        seed=options.seed,
        device=device,
        num_workers=options.num_workers,
        views=views,
    )
    result = run_training(
        options.model,
        loader,
        settings,
        workspace,
        options,
        run_dir,
        resume=is_begun_here,
        save_epochs=options.early_epochs,
    )
    kind, accuracy = ("ema", "top1_ema") if options.ema else ("last", "top1")
    quality = result.ema if options.ema else result.last
    top1 = quality.top1 if quality else None
    trained = run_dir / f"{kind}.safetensors"
    top1_of = {line["epoch"]: line[accuracy] for line in read_metrics(run_dir)}
    described = about | {"class_names": data.class_names}
    for epoch, target in early.items():
        _save_teacher(
            early_weights(run_dir, epoch), target, described | {"epoch": epoch}, top1=top1_of[epoch]
        )
    # Last: this file marks the teacher as complete.
    _save_teacher(trained, path, described, top1=top1)
    seconds = round(time.perf_counter() - started, 3)
    return TrainTeacherResult(top1=top1, path=path.resolve(), seconds=seconds)


def _save_teacher(trained: Path, path: Path, about: dict[str, Any], *, top1: float | None) -> None:
    """Write weights of the run folder as a teacher file."""
    weights, _ = load_weights(trained)
    model = make_model(
        about["arch"],
        num_classes=about["classes"],
        image_size=about["image_size"],
        stem=about["stem"],
    )
    fill_model(model, weights, path=trained)
    # A store records the digest, so a store of an older teacher is recognised.
    stem = about["stem"] if has_hidden_stem(about["arch"]) else None
    digest = model_digest(model, hidden_stem=stem)
    save_weights(path, weights, about | {"top1": top1, "digest": digest})


def _missing_early_weights(run_dir: Path, epochs: tuple[int, ...]) -> list[int]:
    """Return the finished epochs of a run whose weights should have been kept, but were not."""
    checkpoint = run_dir / CHECKPOINT
    if not epochs or not checkpoint.exists():
        return []
    _, about = load_weights(checkpoint)
    done = about["progress"]["epochs_done"]
    return [e for e in epochs if e <= done and not early_weights(run_dir, e).exists()]


def _require_same_teacher(
    path: Path, about: dict[str, Any], early: dict[int, Path]
) -> float | None:
    _, found = load_weights(path)
    if differ := differences(found, about):
        raise CacheMismatchError(
            f"{path} was trained with other settings: {differ}. "
            "Use --overwrite to replace it, or another --workspace"
        )
    if missing := [file for file in early.values() if not file.exists()]:
        raise CacheMismatchError(
            f"{path} was trained without keeping {missing[0].name}. Use --overwrite to train it "
            "again, to the same weights"
        )
    logger.info("up to date: %s", path)
    top1: float | None = found.get("top1")
    return top1
