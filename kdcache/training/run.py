"""What training a student and training a teacher have in common: a model, its loop, its result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdcache.errors import ConfigError
from kdcache.loader.distill import DistillLoader
from kdcache.options import Precision, TrainOptions, TrainTeacherOptions
from kdcache.progress import logger
from kdcache.rng import torch_seed
from kdcache.teacher.forward import Normalise
from kdcache.teacher.models import MODELS, make_model
from kdcache.training.evaluate import Evaluator
from kdcache.training.trainer import Trainer, TrainSettings
from kdcache.workspace import Workspace


def require_model(name: str | None) -> None:
    """Check a model's name before anything is written.

    Raises:
        ConfigError: if there is no such model; lists those that are.
    """
    if name is not None and name not in MODELS:
        raise ConfigError(f"--model is {name}, expected one of {', '.join(MODELS)}")


def default_precision(asked: Precision | None, device: torch.device) -> Precision:
    """Return the precision asked for, else bf16 on CUDA and fp32 on a CPU."""
    return asked or ("bf16" if device.type == "cuda" else "fp32")


def run_training(
    model_name: str,
    loader: DistillLoader,
    settings: TrainSettings,
    workspace: Workspace,
    options: TrainOptions | TrainTeacherOptions,
    run_dir: Path,
    *,
    resume: bool,
) -> dict[str, Any]:
    """Train a model on a loader's batches and evaluate it after each epoch.

    Args:
        model_name: one of `MODELS`.
        loader: of the batches.
        settings: of the loop.
        workspace: whose evaluation split is used, if it has one.
        options: for the seed of initialisation and the reader's threads.
        run_dir: existing folder that receives weights and metrics.
        resume: go on from the run's last checkpoint.

    Returns:
        `top1`, `top1_best`, `top5` (percent, or None), `teacher_forwards`, `images_per_second`,
        `resumed_from_epoch`.
    """
    data = loader.beton.manifest
    torch.manual_seed(torch_seed(options.seed, "initialisation"))
    model: nn.Module = make_model(
        model_name, num_classes=data.classes, image_size=loader.views.image_size
    ).to(loader.device)
    model = model.to(memory_format=torch.channels_last)
    normalise = Normalise(data.mean, data.std).to(loader.device)
    evaluator = None
    val = workspace.beton("val")
    if val.exists():
        evaluator = Evaluator(
            val,
            loader.views,
            classes=data.classes,
            normalise=normalise,
            device=loader.device,
            precision=settings.precision,
            num_workers=options.num_workers,
        )
    else:
        logger.warning("%s does not exist: no accuracy is reported", val)
    about = {
        "arch": model_name,
        "classes": data.classes,
        "image_size": loader.views.image_size,
        "data_fingerprint": data.data_fingerprint,
    }
    trainer = Trainer(
        model, loader, evaluator, settings, normalise=normalise, run_dir=run_dir, about=about
    )
    try:
        result = trainer.run(resume=resume)
    finally:
        loader.close()
    return {
        "top1": result.last.top1 if result.last else None,
        "top1_best": result.top1_best,
        "top5": result.last.top5 if result.last else None,
        "teacher_forwards": result.teacher_forwards,
        "images_per_second": round(result.images_per_second, 1),
        "resumed_from_epoch": result.resumed_from_epoch,
    }
