"""`kdcache train` and `kdcache train-teacher`: options -> a run."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdcache.data.beton import LARGEST_SMALL_SIZE, Beton, open_beton
from kdcache.data.views import Policy, Views
from kdcache.errors import CacheMismatchError, ConfigError
from kdcache.files import read_json, write_json
from kdcache.loader.distill import DistillLoader, require_same_data
from kdcache.options import Precision, TrainOptions, TrainTeacherOptions
from kdcache.progress import logger
from kdcache.reader.probe import probe_pixels
from kdcache.rng import torch_seed
from kdcache.selection.subset import Subset
from kdcache.store.logit_store import LogitStore
from kdcache.teacher.forward import Normalise, resolve_device
from kdcache.teacher.models import MODELS, make_model
from kdcache.teacher.weights import load_weights, save_weights
from kdcache.training.evaluate import Evaluator
from kdcache.training.optim import (
    default_batch_size,
    default_epochs,
    default_lr,
)
from kdcache.training.trainer import Trainer, TrainSettings
from kdcache.workspace import Workspace

STUDENT_LEAST_EPOCHS, STUDENT_LEAST_STEPS = 30, 1_000
TEACHER_LEAST_EPOCHS, TEACHER_LEAST_STEPS = 10, 450


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
    _require_model(options.model)
    workspace = Workspace(options.workspace)
    beton = open_beton(workspace.require_beton())
    device = resolve_device(options.device)
    subset_path = workspace.require_subset(options.subset)
    subset = None if subset_path is None else _load_subset(subset_path, beton)
    store = _open_store(workspace, options, beton)
    views = store.manifest.views if store else _data_views(beton)
    model_name = options.model or _default_student(views.image_size)
    num_samples = len(beton) if subset is None else len(subset)
    batch_size = options.batch_size or default_batch_size(num_samples)
    settings = TrainSettings(
        epochs=options.epochs
        or default_epochs(
            num_samples,
            batch_size,
            least_epochs=STUDENT_LEAST_EPOCHS,
            least_steps=STUDENT_LEAST_STEPS,
        ),
        lr=options.lr or default_lr(batch_size, model_name),
        alpha=options.alpha,
        temperature=options.temperature,
        precision=_precision(options.precision, device),
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
        "data_fingerprint": beton.manifest.fingerprint,
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
    )
    subset_name = "full" if subset_path is None else subset_path.stem
    name = f"{model_name}-{subset_name}-s{options.seed}" + ("" if distils else "-no-kd")
    run_dir = _run_folder(workspace, name, options)
    _write_config(run_dir, config, device, resume=options.resume)
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
    result = _run(model_name, loader, settings, workspace, options, run_dir, resume=options.resume)
    return result | {
        "samples": num_samples,
        "seconds": round(time.perf_counter() - started, 3),
        "path": str(run_dir.resolve()),
    }


def train_teacher(options: TrainTeacherOptions) -> dict[str, Any]:
    """Train a teacher on all data, with the labels alone.

    Returns:
        `top1` (percent; None without an evaluation split), `path` and `seconds`.

    Raises:
        ConfigError: if a setting is outside its range.
        CacheMismatchError: if a teacher of this name was trained otherwise.
        TrainingError: if the loss is not finite.
    """
    started = time.perf_counter()
    _require_model(options.model)
    workspace = Workspace(options.workspace)
    beton = open_beton(workspace.require_beton())
    device = resolve_device(options.device)
    data = beton.manifest
    views = Views(
        Policy.parse(options.policy or data.policy),
        options.view_seed,
        options.image_size or data.image_size,
    )
    batch_size = options.batch_size or default_batch_size(len(beton))
    settings = TrainSettings(
        epochs=options.epochs
        or default_epochs(
            len(beton),
            batch_size,
            least_epochs=TEACHER_LEAST_EPOCHS,
            least_steps=TEACHER_LEAST_STEPS,
        ),
        lr=options.lr or default_lr(batch_size, options.model),
        alpha=0.0,
        temperature=1.0,
        precision=_precision(options.precision, device),
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
        "epochs": settings.epochs,
        "lr": settings.lr,
        "precision": settings.precision,
    }
    path = workspace.teacher(options.model)
    if path.exists() and not options.overwrite:
        top1 = _require_same_teacher(path, about)
        return {"top1": top1, "path": str(path.resolve()), "seconds": 0.0}
    run_dir = workspace.run(f"teacher-{options.model}")
    run_dir.mkdir(parents=True, exist_ok=True)
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
    result = _run(options.model, loader, settings, workspace, options, run_dir, resume=False)
    weights, _ = load_weights(run_dir / "last.safetensors")
    save_weights(path, weights, about | {"top1": result["top1"]})
    return {
        "top1": result["top1"],
        "path": str(path.resolve()),
        "seconds": round(time.perf_counter() - started, 3),
    }


def _run(
    model_name: str,
    loader: DistillLoader,
    settings: TrainSettings,
    workspace: Workspace,
    options: TrainOptions | TrainTeacherOptions,
    run_dir: Path,
    *,
    resume: bool,
) -> dict[str, Any]:
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
        "data_fingerprint": data.fingerprint,
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


def _require_model(name: str | None) -> None:
    if name is not None and name not in MODELS:
        raise ConfigError(f"--model is {name}, expected one of {', '.join(MODELS)}")


def _open_store(workspace: Workspace, options: TrainOptions, beton: Beton) -> LogitStore | None:
    """Return the store; without KD it still says how views are made, where there is one."""
    if not options.kd and options.teacher is None and workspace.recall("store") is None:
        return None
    store = LogitStore.open(workspace.require_store(options.teacher))
    require_same_data(beton, store)
    return store


def _check_pixels(beton: Beton, store: LogitStore, options: TrainOptions) -> None:
    """Compare a few views with those that the teacher answered for."""
    is_other_data = store.manifest.data_fingerprint != beton.manifest.fingerprint
    if is_other_data or not len(store.pixel_probe):
        return  # of other data the loader speaks
    found = probe_pixels(beton, store.manifest.views, num_workers=options.num_workers)
    differ = int((found != store.pixel_probe).any(axis=1).sum())
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


def _data_views(beton: Beton) -> Views:
    return Views(Policy.parse(beton.manifest.policy), 0, beton.manifest.image_size)


def _load_subset(path: Path, beton: Beton) -> Subset:
    subset = Subset.load(path)
    found = subset.provenance.get("data_fingerprint")
    if found is not None and found != beton.manifest.fingerprint:
        raise CacheMismatchError(
            f"{path} was selected from other data: data_fingerprint is {found[:12]}, expected "
            f"{beton.manifest.fingerprint[:12]} of {beton.path}. Run kdcache select again"
        )
    return subset


def _digest(subset: Subset) -> str:
    return hashlib.sha256(subset.sample_ids.tobytes()).hexdigest()


def _default_student(image_size: int) -> str:
    return "resnet8" if image_size <= LARGEST_SMALL_SIZE else "resnet18"


def _precision(asked: Precision | None, device: torch.device) -> Precision:
    return asked or ("bf16" if device.type == "cuda" else "fp32")


def _run_folder(workspace: Workspace, name: str, options: TrainOptions) -> Path:
    """Return the run's folder: new, or with --resume the one to continue."""
    if options.out is not None:
        has_run = (options.out / "config.json").exists()
        if options.resume and not has_run:
            raise ConfigError(f"--resume is given, but {options.out} holds no run. Leave it out")
        if not options.resume and options.out.exists() and any(options.out.iterdir()):
            raise ConfigError(
                f"--out is {options.out}, which is there and not empty. Use --resume to continue "
                "a run, or name another folder"
            )
        return options.out
    number = 1
    folder = workspace.run(name)
    newest = None
    while folder.exists():
        newest = folder
        number += 1
        folder = workspace.run(f"{name}-{number}")
    if not options.resume:
        return folder
    if newest is None:
        raise ConfigError(f"--resume is given, but there is no run {folder}. Leave it out")
    return newest


def _write_config(
    run_dir: Path, config: dict[str, Any], device: torch.device, *, resume: bool
) -> None:
    path = run_dir / "config.json"
    if resume:
        found = read_json(path)["config"]
        differ = [
            f"{key} is {config[key]!r}, there {found.get(key)!r}"
            for key in config
            if found.get(key) != config[key]
        ]
        if differ:
            raise CacheMismatchError(
                f"{run_dir} was started otherwise: {'; '.join(differ)}. "
                "Resume with the same options, or start a new run"
            )
        return
    environment = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
    } | {package: version(package) for package in ("kdcache", "torch", "ffcv", "numpy", "zarr")}
    run_dir.mkdir(parents=True, exist_ok=True)
    write_json(path, {"config": config, "environment": environment})


def _require_same_teacher(path: Path, about: dict[str, Any]) -> float | None:
    _, found = load_weights(path)
    differ = [
        f"{key} is {about[key]!r}, there {found.get(key)!r}"
        for key in about
        if found.get(key) != about[key]
    ]
    if differ:
        raise CacheMismatchError(
            f"{path} was trained otherwise: {'; '.join(differ)}. "
            "Use --overwrite to replace it, or another --workspace"
        )
    logger.info("up to date: %s", path)
    top1: float | None = found.get("top1")
    return top1
