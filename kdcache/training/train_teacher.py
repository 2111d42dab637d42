"""`kdcache train-teacher`: plain training on all data."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kdcache.data.beton import open_beton
from kdcache.data.views import default_views
from kdcache.errors import CacheMismatchError
from kdcache.files import differences
from kdcache.loader.distill import DistillLoader
from kdcache.models.registry import make_model
from kdcache.options import TrainTeacherOptions
from kdcache.progress import logger
from kdcache.teacher.forward import resolve_device
from kdcache.teacher.teacher import tensor_digest
from kdcache.teacher.weights import fill_model, load_weights, save_weights
from kdcache.training.optim import default_batch_size
from kdcache.training.run import loop_settings, require_model, run_training
from kdcache.training.run_folder import as_json, is_begun, write_config
from kdcache.workspace import Workspace, teacher_name

LEAST_EPOCHS, LEAST_STEPS = 10, 450
"""Of a teacher, when the user does not say."""


def train_teacher(options: TrainTeacherOptions) -> dict[str, Any]:
    """Train a teacher on all data, with the labels alone; with --ema its averaged weights.

    Returns:
        `top1` (percent; None without an evaluation split), `path` and `seconds`.

    Raises:
        ConfigError: if a setting is outside its range.
        CacheMismatchError: if a teacher of this name was trained otherwise.
        TrainingError: if the loss is not finite.
    """
    started = time.perf_counter()
    require_model(options.model)
    workspace = Workspace(options.workspace)
    beton = open_beton(workspace.require_beton())
    device = resolve_device(options.device)
    data = beton.manifest
    views = default_views(
        data, policy=options.policy, seed=options.view_seed, image_size=options.image_size
    )
    batch_size = options.batch_size or default_batch_size(len(beton))
    settings = loop_settings(
        options,
        model_name=options.model,
        num_samples=len(beton),
        batch_size=batch_size,
        device=device,
        least_epochs=LEAST_EPOCHS,
        least_steps=LEAST_STEPS,
    )
    about = {
        "arch": options.model,
        "classes": data.classes,
        "data_fingerprint": data.fingerprint,
        "image_size": views.image_size,
        "policy": str(views.policy),
        "view_seed": views.seed,
        "seed": options.seed,
        "batch_size": batch_size,
        **as_json(asdict(settings)),
    }
    name = teacher_name(options.model)
    path = workspace.teacher(name)
    if path.exists() and not options.overwrite:
        top1 = _require_same_teacher(path, about)
        return {"top1": top1, "path": str(path.resolve()), "seconds": 0.0}
    run_dir = workspace.run(f"teacher-{name}")
    # One that was killed goes on; another one's folder is begun anew.
    is_begun_here = is_begun(run_dir, about) and not options.overwrite
    if not is_begun_here:
        for stale in run_dir.glob("*.safetensors"):
            stale.unlink()
    write_config(run_dir, about, device, resume=is_begun_here)
    logger.info(
        "teacher %s on %s samples, batch %d, %d epochs, lr %g, %s",
        options.model,
        f"{len(beton):,}",
        batch_size,
        settings.epochs,
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
        options.model, loader, settings, workspace, options, run_dir, resume=is_begun_here
    )
    kind, accuracy = ("ema", "top1_ema") if options.ema else ("last", "top1")
    trained = run_dir / f"{kind}.safetensors"
    weights, _ = load_weights(trained)
    model = make_model(options.model, num_classes=data.classes, image_size=views.image_size)
    fill_model(model, weights, path=trained)
    # A store names it, so that one of an older teacher is known.
    said = {"top1": result[accuracy], "digest": tensor_digest(model)}
    save_weights(path, weights, about | said)
    return {
        "top1": result[accuracy],
        "path": str(path.resolve()),
        "seconds": round(time.perf_counter() - started, 3),
    }


def _require_same_teacher(path: Path, about: dict[str, Any]) -> float | None:
    _, found = load_weights(path)
    if differ := differences(found, about):
        raise CacheMismatchError(
            f"{path} was trained otherwise: {differ}. "
            "Use --overwrite to replace it, or another --workspace"
        )
    logger.info("up to date: %s", path)
    top1: float | None = found.get("top1")
    return top1
