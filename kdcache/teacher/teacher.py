"""What `--teacher` names: a path, a name in the workspace, or module:callable."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from kdcache.data.beton import BetonManifest
from kdcache.errors import ConfigError, TeacherError
from kdcache.teacher.models import make_model
from kdcache.teacher.weights import fill_model, load_weights
from kdcache.workspace import Workspace, teacher_name


@dataclass(frozen=True)
class Teacher:
    """A model that answers, and what identifies it."""

    name: str
    """Under which its store is kept."""
    arch: str
    digest: str
    """sha256 over names and values of its tensors, in the order of its state dict."""
    model: nn.Module
    stated_top1: float | None
    """Percent that its file says of the evaluation split; None where it does not."""


def open_teacher(
    spec: str, *, arch: str | None, workspace: Workspace, data: BetonManifest, image_size: int
) -> Teacher:
    """Load the teacher that `--teacher` names.

    Args:
        spec: a path, a name in the workspace's teachers/, or module:callable; the callable is
            called without arguments and returns a module that maps images normalised with the
            manifest's mean and std, (B, 3, H, W), to logits (B, C).
        arch: model of a file that does not say; refused where it would be ignored.
        workspace: where names are looked up.
        data: manifest of the training data.
        image_size: height and width of its images.

    Raises:
        ConfigError: if there is no such teacher, or `arch` is missing, or has no use.
        TeacherError: if it does not fit the data.
    """
    as_path = Path(spec)
    if as_path.is_file() or spec.endswith(".safetensors"):
        path = as_path
    elif ":" in spec:
        return _from_callable(spec, arch)
    else:
        path = workspace.teacher(spec)
    if not path.is_file():
        raise ConfigError(
            f"--teacher is {spec}, expected a path, a name in {path.parent}, or module:callable. "
            f"{path} does not exist. Run: kdcache train-teacher --model {as_path.stem}"
        )
    tensors, about = load_weights(path)
    stated = about.get("arch")
    if arch and stated and arch != stated:
        raise ConfigError(
            f"--arch is {arch}, but {path} says that it is {stated}. Leave the option out"
        )
    name = arch or stated
    if name is None:
        raise ConfigError(f"--arch is missing, expected the model that {path} holds the weights of")
    classes = about.get("classes")
    if classes not in (None, data.classes):
        raise TeacherError(
            f"{path} has {classes} classes, expected {data.classes} as in the packed data. "
            f"Run: kdcache train-teacher --model {name}"
        )
    model = make_model(name, num_classes=data.classes, image_size=image_size)
    fill_model(model, tensors, path=path)
    return Teacher(teacher_name(spec), name, tensor_digest(model), model, about.get("top1"))


def _from_callable(spec: str, arch: str | None) -> Teacher:
    if arch is not None:
        raise ConfigError(
            f"--arch is {arch}, but {spec} returns its own model. Leave the option out"
        )
    module_name, _, attribute = spec.partition(":")
    # As `python -m` does, so that a module beside the user is found by the console script too.
    sys.path.insert(0, os.getcwd())  # noqa: PTH109  (sys.path holds strings)
    try:
        make = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"--teacher is {spec}, expected module:callable, but {error}. "
            "Run in the module's folder, or set PYTHONPATH"
        ) from error
    finally:
        sys.path.pop(0)
    if not callable(make):
        raise ConfigError(
            f"--teacher is {spec}, expected module:callable, but {attribute} is "
            f"{type(make).__name__}"
        )
    model = make()
    if not isinstance(model, nn.Module):
        raise TeacherError(
            f"{spec} returned {type(model).__name__}, expected a torch.nn.Module that maps images "
            "(B, 3, H, W) to logits (B, C)"
        )
    return Teacher(teacher_name(spec), spec, tensor_digest(model), model, None)


def tensor_digest(model: nn.Module) -> str:
    """Return the hex sha256 over the names and values of a model's tensors."""
    content = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        content.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        content.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()
