"""`kdcache evaluate`: measure the weights of a run or of a file."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from kdcache.channels import (
    Normalisation,
    choose_normalisation,
    describe_channels,
    parse_normalisations,
)
from kdcache.compute.device import resolve_device
from kdcache.compute.normalize import Normalise
from kdcache.data.beton import open_beton
from kdcache.data.beton_manifest import BetonManifest
from kdcache.data.views import default_views
from kdcache.errors import CacheMismatchError, ConfigError
from kdcache.models.description import WeightsDescription
from kdcache.models.registry import make_model
from kdcache.models.stems import stem_of_file
from kdcache.models.weights import fill_model, load_weights
from kdcache.options import EvaluateOptions, as_values
from kdcache.progress import logger
from kdcache.rng import keeps_torch_rng
from kdcache.training.evaluator import Evaluator
from kdcache.training.results import EvaluateResult
from kdcache.training.run import default_precision
from kdcache.workspace import Workspace


@keeps_torch_rng
def evaluate(options: EvaluateOptions) -> EvaluateResult:
    """Measure a model on the clean view of a split.

    Raises:
        ConfigError: if the weights do not exist, or their model is not known.
        DatasetError: if the split is not packed.
        CacheMismatchError: if the weights have another number of classes.
        WeightsError: if the file is damaged, or does not fit its model.
    """
    started = time.perf_counter()
    workspace = Workspace(Path(options.workspace))
    beton = open_beton(workspace.require_beton(options.split))
    device = resolve_device(options.device)
    path = _weights_path(options, workspace)
    tensors, metadata = load_weights(path)
    about = WeightsDescription.parse(metadata, path)
    data = beton.manifest
    if about.classes not in (None, data.classes):
        raise CacheMismatchError(
            f"{path} has {about.classes} classes, expected {data.classes} as in {beton.path}"
        )
    name = _model_name(options, about, path)
    views = default_views(
        data,
        image_size=about.image_size,
        definition=options.pixel_definition or about.pixel_definition,
        decode=options.decode or about.decode,
    )
    stem = stem_of_file(
        path,
        name,
        given=options.stem,
        stated=about.stem,
        shapes={name: tuple(tensor.shape) for name, tensor in tensors.items()},
        image_size=views.image_size,
    )
    model = make_model(name, num_classes=data.classes, image_size=views.image_size, stem=stem)
    fill_model(model, tensors, path=path)
    normalisation = _normalisation(options, about, data, path)
    mean, std = normalisation.mean, normalisation.std
    logger.info(
        "%s (%s%s) on %s of %s samples of %d px, mean %s, std %s",
        path,
        name,
        f", {stem} stem" if stem else "",
        beton.path,
        f"{len(beton):,}",
        views.image_size,
        describe_channels(mean),
        describe_channels(std),
    )
    evaluator = Evaluator(
        beton.path,
        views,
        classes=data.classes,
        normalise=Normalise(mean, std).to(device),
        device=device,
        precision=default_precision(options.precision, device),
        num_workers=options.num_workers,
    )
    found = evaluator(model.to(device).to(memory_format=torch.channels_last))
    return EvaluateResult(
        **found._asdict(),
        samples=len(beton),
        split=options.split,
        seconds=round(time.perf_counter() - started, 3),
        path=path.resolve(),
    )


def _weights_path(options: EvaluateOptions, workspace: Workspace) -> Path:
    given = options.weights or workspace.recall("run")
    if given is None:
        raise ConfigError(
            "no weights are given and no run has finished yet. Run: kdcache train, or name a run "
            "folder or a safetensors file"
        )
    asked = Path(given)
    if asked.suffix == ".safetensors":
        if options.which != "last":
            raise ConfigError(
                parameter="which",
                value=options.which,
                rule=f"a run to choose from, but {asked} is a file",
            )
        path = asked
    else:
        folder = asked if asked.is_dir() else workspace.run(str(asked))
        path = folder / f"{options.which}.safetensors"
        if folder.is_dir() and not path.exists():
            raise ConfigError(
                parameter="which",
                value=options.which,
                problem=f"{folder} has no {path.name}; it holds {_names(folder)}",
            )
    if not path.exists():
        runs = workspace.run("NAME").parent
        raise ConfigError(
            f"{given} is not found, expected a run folder, a safetensors file, or one of the "
            f"runs in {runs}: {_names(runs)}"
        )
    return path


def _names(folder: Path) -> str:
    if not folder.is_dir():
        return "none"
    return ", ".join(sorted(path.name for path in folder.iterdir())) or "none"


def _normalisation(
    options: EvaluateOptions, about: WeightsDescription, data: BetonManifest, path: Path
) -> Normalisation:
    given = parse_normalisations(as_values(options.mean), as_values(options.std), prefix="")
    found = choose_normalisation(
        str(path),
        given=given[0] if given else None,
        stated=about.normalisation,
        data=(data.mean, data.std),
        prefix="",
    )
    if found.is_assumed:
        logger.warning(
            "WARNING: %s does not state the mean and std that it was trained with: the data's are "
            "used. State others with --mean and --std",
            path,
        )
    return found


def _model_name(options: EvaluateOptions, about: WeightsDescription, path: Path) -> str:
    stated = about.arch
    if options.model and stated and options.model != stated:
        raise ConfigError(
            parameter="model",
            value=options.model,
            problem=f"{path} is of the model {stated}",
            remedy="Leave the option out",
        )
    name = options.model or stated
    if name is None:
        raise ConfigError(
            f"--model is missing, expected the model of the weights in {path}",
            parameter="model",
        )
    return name
