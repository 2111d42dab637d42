"""The common part of training a student and a teacher: settings, model, loop and result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from kdcache.compute.normalize import Normalise
from kdcache.loader.distill import DistillLoader
from kdcache.models.registry import default_stem, make_model, require_trainable
from kdcache.options import Precision, TrainOptions, TrainTeacherOptions
from kdcache.progress import logger
from kdcache.rng import torch_seed
from kdcache.training.compiling import require_compiler
from kdcache.training.evaluator import Evaluator
from kdcache.training.freed_memory import keep_freed_memory
from kdcache.training.metrics import require_tensorboard
from kdcache.training.optim import MOMENTUM, WEIGHT_DECAY, default_epochs, default_lr
from kdcache.training.trainer import LoopResult, Trainer, TrainSettings
from kdcache.workspace import Workspace


def require_model(name: str | None) -> None:
    """Check a model's name before anything is written.

    Raises:
        ConfigError: if there is no such model; lists the known ones.
    """
    if name is not None:
        require_trainable(name, parameter="model")


def default_precision(asked: Precision | None, device: torch.device) -> Precision:
    """Return the precision asked for, else bf16 on CUDA and fp32 on a CPU."""
    return asked or ("bf16" if device.type == "cuda" else "fp32")


def loop_settings(
    options: TrainOptions | TrainTeacherOptions,
    *,
    model_name: str,
    num_samples: int,
    batch_size: int,
    device: torch.device,
    min_epochs: int,
    min_steps: int,
) -> TrainSettings:
    """Return the settings of a run without distillation, with defaults filled in.

    Args:
        options: options of the command.
        model_name: a name that `make_model` accepts.
        num_samples: samples per epoch.
        batch_size: maximum samples per batch.
        device: device of the model.
        min_epochs: minimum of the default length.
        min_steps: minimum of the default length, in optimiser steps.

    Raises:
        ConfigError: if an option needs something that this machine lacks.
    """
    if options.compile:
        require_compiler(device)
    if options.tensorboard:
        require_tensorboard()
    batches = -(-num_samples // batch_size)
    steps_per_epoch = -(-batches // options.accumulate)
    epochs = options.epochs or (options.steps and -(-options.steps // steps_per_epoch))
    decay = options.weight_decay
    return TrainSettings(
        optimizer=options.optimizer,
        lr=options.lr or default_lr(batch_size * options.accumulate, model_name, options.optimizer),
        momentum=MOMENTUM if options.momentum is None else options.momentum,
        weight_decay=WEIGHT_DECAY[options.optimizer] if decay is None else decay,
        schedule=options.schedule,
        warmup=options.warmup,
        milestones=tuple(options.milestones),
        gamma=options.gamma,
        epochs=epochs
        or default_epochs(steps_per_epoch, min_epochs=min_epochs, min_steps=min_steps),
        steps=options.steps,
        precision=default_precision(options.precision, device),
        accumulate=options.accumulate,
        clip_norm=options.clip_norm,
        ema=options.ema,
        compile=options.compile,
        eval_every=options.eval_every,
    )


def run_training(
    model_name: str,
    loader: DistillLoader,
    settings: TrainSettings,
    workspace: Workspace,
    options: TrainOptions | TrainTeacherOptions,
    run_dir: Path,
    *,
    resume: bool,
    save_epochs: Sequence[int] = (),
) -> LoopResult:
    """Train a model on a loader's batches and evaluate it after each epoch.

    Args:
        model_name: a name that `make_model` accepts.
        loader: training batches; it is closed at the end.
        settings: settings of the loop.
        workspace: its evaluation split is used, if it has one.
        options: seed of initialisation, reader threads and TensorBoard.
        run_dir: existing folder that receives weights and metrics.
        resume: continue from the run's last checkpoint.
        save_epochs: epochs, counted from 1, whose weights are kept.
    """
    if loader.device.type == "cpu":
        keep_freed_memory()
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
        "pixel_definition": loader.views.definition,
        "decode": loader.views.decode,
        "mean": data.mean,
        "std": data.std,
        "stem": default_stem(model_name, loader.views.image_size),
        "data_fingerprint": data.data_fingerprint,
    }
    trainer = Trainer(
        model,
        loader,
        evaluator,
        settings,
        normalise=normalise,
        run_dir=run_dir,
        about=about,
        tensorboard=options.tensorboard,
        save_epochs=save_epochs,
    )
    try:
        return trainer.run(resume=resume)
    finally:
        loader.close()
