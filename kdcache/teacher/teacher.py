"""Load a teacher: a file of weights, published weights, or the user's own module:callable."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from kdcache.channels import Normalisation, choose_normalisation, describe_channels
from kdcache.data.beton_manifest import BetonManifest
from kdcache.errors import ConfigError, TeacherError, WeightsError
from kdcache.models.registry import MODELS, has_hidden_stem, make_model
from kdcache.models.stems import stem_of_file
from kdcache.models.weights import fill_model, load_weights
from kdcache.options import Stem, TeacherOutput
from kdcache.progress import logger
from kdcache.registry import load_user_code
from kdcache.teacher.class_names import require_same_classes, require_same_names
from kdcache.teacher.member_settings import MemberSettings
from kdcache.teacher.published import PublishedWeights
from kdcache.teacher.sources import ModuleCallable, TeacherSource, WeightsFile, find_teacher
from kdcache.workspace import Workspace, teacher_name


@dataclass(frozen=True)
class Teacher:
    """A model with its normalisation and its identity."""

    name: str
    """The name of its store."""
    spec: str
    """The value of `--teacher` that finds it again; for a file, only its name."""
    arch: str
    """Its architecture, with the stem and the output where the tensors do not tell them."""
    digest: str
    """Hex sha256 that identifies the model, without its normalisation; see `model_digest`."""
    model: nn.Module
    mean: list[float]
    """(3,) of its normalisation, in [0, 1]."""
    std: list[float]
    """(3,) of its normalisation, above 0."""
    reported_top1: float | None
    """Top-1 on the evaluation split that its publisher or its file reports, in percent, or None."""
    output: TeacherOutput = "logits"
    """What the model returns; the logarithm of probabilities is taken as logits."""
    states_normalisation: bool = True
    """True if its publisher or its file states mean and std, so that no option may."""


def open_teacher(
    spec: str,
    *,
    workspace: Workspace,
    data: BetonManifest,
    image_size: int,
    settings: MemberSettings | None = None,
) -> Teacher:
    """Find a teacher and load it; see `find_teacher` and `load_teacher`."""
    source = find_teacher(spec, workspace)
    return load_teacher(
        spec, source, settings=settings or MemberSettings(), data=data, image_size=image_size
    )


def load_teacher(
    spec: str,
    source: TeacherSource,
    *,
    settings: MemberSettings,
    data: BetonManifest,
    image_size: int,
) -> Teacher:
    """Load a teacher, and log the normalisation that it gets.

    Args:
        spec: value of `--teacher`.
        source: its origin, from `find_teacher`. A callable takes no arguments and returns a module
            that maps normalised images (B, 3, H, W) to logits (B, C).
        settings: what the options say about it.
        data: manifest of the training data.
        image_size: height and width of its images, in pixels.

    Raises:
        ConfigError: if the model or the stem of a file is not known, or is given although the
            teacher states another, or although it is not used.
        TeacherError: if it does not fit the data, published weights cannot be downloaded, or the
            user's code raises an exception.
        WeightsError: if the file is damaged, or its tensors do not fit the model.
    """
    if isinstance(source, WeightsFile):
        return _from_file(spec, source, settings, data, image_size)
    for option, value in (("arch", settings.arch), ("stem", settings.stem)):
        if value is not None:
            raise ConfigError(
                parameter=option,
                value=value,
                problem=f"{spec} brings its own model",
                remedy="Leave the option out",
            )
    if isinstance(source, PublishedWeights):
        return _from_publisher(spec, source, settings, data, image_size)
    return _from_callable(source.spec, source, settings, data, image_size)


def _from_file(
    spec: str, source: WeightsFile, settings: MemberSettings, data: BetonManifest, image_size: int
) -> Teacher:
    path, about = source.path, source.about
    if settings.arch and about.arch and settings.arch != about.arch:
        raise ConfigError(
            parameter="arch",
            value=settings.arch,
            problem=f"{path} is of the model {about.arch}",
            remedy="Leave the option out",
        )
    arch = settings.arch or about.arch
    if arch is None:
        raise ConfigError(
            f"--arch is missing, expected the model of the weights in {path}",
            parameter="arch",
        )
    if about.classes not in (None, data.classes):
        raise TeacherError(
            f"{path} has {about.classes} classes, expected {data.classes} as in the packed data. "
            f"Run: kdcache train-teacher --model {arch}"
        )
    if about.class_names is not None and len(about.class_names) != data.classes:
        raise TeacherError(
            f"{path} names {len(about.class_names)} classes, expected {data.classes} as in the "
            f"packed data. Run: kdcache train-teacher --model {arch}"
        )
    if about.data_fingerprint != data.data_fingerprint:
        require_same_names(str(path), about.class_names, data.class_names)
    normalisation = _normalisation(str(path), source, settings, data)
    tensors, _ = load_weights(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    stem = stem_of_file(
        path, arch, given=settings.stem, stated=about.stem, shapes=shapes, image_size=image_size
    )
    model = make_model(arch, num_classes=data.classes, image_size=image_size, stem=stem)
    try:
        fill_model(model, tensors, path=path)
    except WeightsError as error:
        if about.image_size in (None, image_size):
            raise
        raise WeightsError(
            f"{path} was trained at {about.image_size} px and does not fit {arch} at {image_size} "
            f"px. Use --teacher-size {about.image_size}"
        ) from error
    _log_input(spec, image_size, normalisation, stem=stem, trained_at=about.image_size)
    hidden_stem = stem if has_hidden_stem(arch) else None
    return Teacher(
        name=teacher_name(spec),
        spec=teacher_name(spec),
        arch=describe_arch(arch, hidden_stem, settings.output),
        digest=model_digest(model, hidden_stem=hidden_stem, output=settings.output),
        model=model,
        mean=normalisation.mean,
        std=normalisation.std,
        reported_top1=about.top1,
        output=settings.output,
        states_normalisation=source.normalisation is not None,
    )


def _from_publisher(
    spec: str,
    source: PublishedWeights,
    settings: MemberSettings,
    data: BetonManifest,
    image_size: int,
) -> Teacher:
    if source.classes != data.classes:
        model_name = spec if spec in MODELS else "resnet50"
        raise TeacherError(
            parameter="teacher",
            value=spec,
            problem=(
                f"there is no such file, and the published weights {source.arch} have "
                f"{source.classes:,} classes, expected {data.classes:,} as in the packed "
                "data"
            ),
            remedy=f"Run: kdcache train-teacher --model {model_name}",
        )
    is_same = require_same_classes(data.class_names, source)
    normalisation = _normalisation(source.arch, source, settings, data)
    model = source.load(image_size)
    logger.info(
        "%s has published weights: evaluated at %d px on a centre crop of %.4g of the short side",
        source.arch,
        source.image_size,
        source.center_crop_ratio,
    )
    _log_input(spec, image_size, normalisation, trained_at=source.image_size)
    return Teacher(
        name=teacher_name(spec),
        spec=spec,
        arch=describe_arch(source.arch, None, settings.output),
        digest=model_digest(model, output=settings.output),
        model=model,
        mean=normalisation.mean,
        std=normalisation.std,
        reported_top1=source.top1 if is_same else None,
        output=settings.output,
    )


def _from_callable(
    spec: str,
    source: ModuleCallable,
    settings: MemberSettings,
    data: BetonManifest,
    image_size: int,
) -> Teacher:
    make = load_user_code(spec, option="teacher")
    try:
        model = make()
    except Exception as error:  # whatever the user's code raises
        raise TeacherError(
            f"{spec} raised {type(error).__name__}: {error}, expected a function without arguments "
            "that returns a torch.nn.Module"
        ) from error
    if not isinstance(model, nn.Module):
        raise TeacherError(
            f"{spec} returned {type(model).__name__}, expected a torch.nn.Module that maps images "
            "(B, 3, H, W) to logits (B, C)"
        )
    _require_values(model, spec)
    normalisation = _normalisation(spec, source, settings, data)
    _log_input(spec, image_size, normalisation)
    return Teacher(
        name=teacher_name(spec),
        spec=spec,
        arch=describe_arch(spec, None, settings.output),
        digest=model_digest(model, output=settings.output),
        model=model,
        mean=normalisation.mean,
        std=normalisation.std,
        reported_top1=None,
        output=settings.output,
        states_normalisation=source.normalisation is not None,
    )


def _require_values(model: nn.Module, spec: str) -> None:
    """Check that the model of a callable has values for all its tensors.

    Raises:
        TeacherError: if a lazy layer has no size yet, or a tensor is on the device `meta`.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor) or tensor.is_meta:
            raise TeacherError(
                f"{spec} returned a model whose {name} has no values yet, expected trained "
                "weights. Load them before the function returns"
            )


def _normalisation(
    name: str, source: TeacherSource, settings: MemberSettings, data: BetonManifest
) -> Normalisation:
    return choose_normalisation(
        name,
        given=settings.normalisation,
        stated=source.normalisation,
        data=(data.mean, data.std),
    )


def _log_input(
    spec: str,
    image_size: int,
    normalisation: Normalisation,
    *,
    stem: Stem | None = None,
    trained_at: int | None = None,
) -> None:
    """Log the images that a teacher gets; warn if its mean and std are only assumed."""
    size = f"images of {image_size} px"
    if trained_at not in (None, image_size):
        size += f" (trained at {trained_at} px)"
    channels = describe_channels(normalisation.mean), describe_channels(normalisation.std)
    is_of = f", {stem} stem" if stem else ""
    logger.info("teacher %s: %s, mean %s, std %s%s", spec, size, *channels, is_of)
    if normalisation.is_assumed:
        logger.warning(
            "WARNING: %s does not state its mean and std: the data's are used, mean %s, std %s. "
            "State those that it was trained with by --teacher-mean and --teacher-std (R,G,B, or "
            "imagenet, data or none)",
            spec,
            *channels,
        )


def describe_arch(arch: str, hidden_stem: Stem | None, output: TeacherOutput) -> str:
    """Return an architecture with everything that its tensors do not tell."""
    notes = [f"{hidden_stem} stem"] if hidden_stem else []
    notes += [output] if output != "logits" else []
    return f"{arch} ({', '.join(notes)})" if notes else arch


def model_digest(
    model: nn.Module, *, hidden_stem: Stem | None = None, output: TeacherOutput = "logits"
) -> str:
    """Return the hex sha256 that identifies a model.

    It is that of the tensors, unless the same tensors can belong to different functions.

    Args:
        model: the model.
        hidden_stem: its stem, if the tensors do not tell it.
        output: what the model returns.
    """
    digest = tensor_digest(model)
    if hidden_stem is None and output == "logits":
        return digest
    return hashlib.sha256(json.dumps([digest, hidden_stem, output]).encode()).hexdigest()


def tensor_digest(model: nn.Module) -> str:
    """Return the hex sha256 over the names and values of a model's tensors."""
    content = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        content.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        content.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()
