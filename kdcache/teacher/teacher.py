"""Find and load a teacher: a path, a name in the workspace, published weights, module:callable."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from kdcache.data.beton_manifest import BetonManifest
from kdcache.errors import ConfigError, TeacherError
from kdcache.models.registry import MODELS, make_model
from kdcache.models.timm_models import TIMM_PREFIX
from kdcache.models.weights import fill_model, load_weights
from kdcache.progress import logger
from kdcache.registry import load_user_code
from kdcache.teacher.class_names import require_same_classes, require_same_names
from kdcache.teacher.published import PublishedWeights
from kdcache.teacher.timm_weights import find_timm
from kdcache.workspace import Workspace, teacher_name


@dataclass(frozen=True)
class Teacher:
    """A model with its normalisation and its identity."""

    name: str
    """The name of its store."""
    spec: str
    """The value of `--teacher` that finds it again; for a file, only its name."""
    arch: str
    digest: str
    """Hex sha256 over names and values of its tensors, in the order of its state dict."""
    model: nn.Module
    mean: list[float]
    """(3,) of its normalisation, in [0, 1]."""
    std: list[float]
    """(3,) of its normalisation, above 0."""
    reported_top1: float | None
    """Top-1 on the evaluation split that its publisher or its file reports, in percent, or None."""


@dataclass(frozen=True)
class ModuleCallable:
    """A function of the user that returns a model, `module:callable`."""

    spec: str


TeacherSource = Path | PublishedWeights | ModuleCallable
"""The origin of a teacher: a file, published weights, or code of the user."""


def find_teacher(spec: str, workspace: Workspace) -> TeacherSource:
    """Return the origin of a teacher, without loading it.

    Search in this order: a file; a name in teachers/ of the workspace; published weights, of
    torchvision by model name and of timm as `timm:NAME`; `module:callable`.

    Raises:
        ConfigError: if there is no such teacher.
        TeacherError: if the published weights of that name cannot be used.
    """
    as_path, named = Path(spec), workspace.teacher(spec)
    if as_path.is_file():
        return as_path
    if not spec.endswith(".safetensors"):
        if spec.startswith(TIMM_PREFIX):
            return find_timm(spec)
        if ":" in spec:
            return ModuleCallable(spec)
        if named.is_file():
            return named
        from kdcache.teacher.torchvision_weights import find_torchvision

        if published := find_torchvision(spec):
            return published
    missing = as_path if spec.endswith(".safetensors") else named
    raise ConfigError(
        parameter="teacher",
        value=spec,
        rule=(
            f"a path, a name in {named.parent}, a classifier of torchvision, "
            f"timm:NAME, or module:callable. {missing} does not exist"
        ),
        remedy=f"Run: kdcache train-teacher --model {as_path.stem}",
    )


def open_teacher(
    spec: str, *, arch: str | None, workspace: Workspace, data: BetonManifest, image_size: int
) -> Teacher:
    """Find a teacher and load it; see `find_teacher` and `load_teacher`."""
    source = find_teacher(spec, workspace)
    return load_teacher(spec, source, arch=arch, data=data, image_size=image_size)


def load_teacher(
    spec: str,
    source: TeacherSource,
    *,
    arch: str | None,
    data: BetonManifest,
    image_size: int,
) -> Teacher:
    """Load a teacher.

    Args:
        spec: value of `--teacher`.
        source: its origin, from `find_teacher`. A callable takes no arguments and returns a module
            that maps images (B, 3, H, W), normalised with the manifest's mean and std, to logits
            (B, C).
        arch: model of a file that does not name one; otherwise it must be None.
        data: manifest of the training data.
        image_size: height and width of its images, in pixels.

    Raises:
        ConfigError: if `arch` is missing, or given although it is not used.
        TeacherError: if it does not fit the data, or published weights cannot be downloaded.
        WeightsError: if the file is damaged, or its tensors do not fit the model.
    """
    if isinstance(source, Path):
        return _from_file(spec, source, arch, data, image_size)
    if arch is not None:
        raise ConfigError(
            parameter="arch",
            value=arch,
            problem=f"{spec} brings its own model",
            remedy="Leave the option out",
        )
    if isinstance(source, PublishedWeights):
        return _from_publisher(spec, source, data, image_size)
    return _from_callable(source.spec, data)


def _from_file(
    spec: str, path: Path, arch: str | None, data: BetonManifest, image_size: int
) -> Teacher:
    tensors, about = load_weights(path)
    stated = about.get("arch")
    if arch and stated and arch != stated:
        raise ConfigError(
            parameter="arch",
            value=arch,
            problem=f"{path} is of the model {stated}",
            remedy="Leave the option out",
        )
    name = arch or stated
    if name is None:
        raise ConfigError(
            f"--arch is missing, expected the model of the weights in {path}",
            parameter="arch",
        )
    classes = about.get("classes")
    if classes not in (None, data.classes):
        raise TeacherError(
            f"{path} has {classes} classes, expected {data.classes} as in the packed data. "
            f"Run: kdcache train-teacher --model {name}"
        )
    model = make_model(name, num_classes=data.classes, image_size=image_size)
    fill_model(model, tensors, path=path)
    if about.get("data_fingerprint") != data.data_fingerprint:
        require_same_names(str(path), about.get("class_names"), data.class_names)
    return Teacher(
        name=teacher_name(spec),
        spec=teacher_name(spec),
        arch=name,
        digest=tensor_digest(model),
        model=model,
        mean=data.mean,
        std=data.std,
        reported_top1=about.get("top1"),
    )


def _from_publisher(
    spec: str, source: PublishedWeights, data: BetonManifest, image_size: int
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
    model = source.load(image_size)
    logger.info(
        "%s has published weights: evaluated at %d px on a centre crop of %.4g of the short side, "
        "mean %s, std %s",
        source.arch,
        source.image_size,
        source.center_crop_ratio,
        source.mean,
        source.std,
    )
    return Teacher(
        name=teacher_name(spec),
        spec=spec,
        arch=source.arch,
        digest=tensor_digest(model),
        model=model,
        mean=source.mean,
        std=source.std,
        reported_top1=source.top1 if is_same else None,
    )


def _from_callable(spec: str, data: BetonManifest) -> Teacher:
    make = load_user_code(spec, option="teacher")
    model = make()
    if not isinstance(model, nn.Module):
        raise TeacherError(
            f"{spec} returned {type(model).__name__}, expected a torch.nn.Module that maps images "
            "(B, 3, H, W) to logits (B, C)"
        )
    return Teacher(
        name=teacher_name(spec),
        spec=spec,
        arch=spec,
        digest=tensor_digest(model),
        model=model,
        mean=data.mean,
        std=data.std,
        reported_top1=None,
    )


def tensor_digest(model: nn.Module) -> str:
    """Return the hex sha256 over the names and values of a model's tensors."""
    content = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        content.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        content.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()
