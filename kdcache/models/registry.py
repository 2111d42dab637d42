"""Models by name. A new family of models is one new file and one line here."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from torch import nn

from kdcache.errors import ConfigError
from kdcache.models.cifar_models import CIFAR_MODELS
from kdcache.models.family import Family
from kdcache.models.torchvision_models import SMALL_STEM_MODELS

FAMILIES = (
    "kdcache.models.cifar_models:FAMILY",
    "kdcache.models.torchvision_models:FAMILY",
    "kdcache.models.timm_models:FAMILY",
)
"""Import paths of the families. The first family that has the name makes the model."""

MODELS = (*CIFAR_MODELS, *SMALL_STEM_MODELS)
"""Models that are tested as students and suit small images."""


def list_models() -> list[str]:
    """Return the names that `make_model` accepts, without those of timm, `timm:NAME`."""
    return [name for family in _families() for name in family.names()]


def make_model(name: str, *, num_classes: int, image_size: int) -> nn.Module:
    """Return a model with fresh weights, drawn from torch's generator.

    Args:
        name: one of `list_models`, or `timm:NAME`.
        num_classes: C; the model maps (B, 3, S, S) to logits (B, C).
        image_size: S, height and width of its images; up to 64 px some models that were made for
            ImageNet get a stem that does not shrink them.

    Raises:
        ConfigError: if the name is unknown, or the model cannot be made for this size.
    """
    family = _family_of(name, parameter="model")
    return family.make(name, num_classes=num_classes, image_size=image_size)


def require_trainable(name: str, *, parameter: str) -> None:
    """Check that the model exists and that its output in training mode is logits alone.

    Args:
        name: name of the model, as in `make_model`.
        parameter: the argument that names the model, for the message.

    Raises:
        ConfigError: if it does not; lists the known models.
    """
    if problem := _family_of(name, parameter=parameter).why_not_trainable(name):
        raise ConfigError(
            parameter=parameter, value=name, problem=f"{problem}, expected {_known()}"
        )


def _family_of(name: str, *, parameter: str) -> Family:
    for family in _families():
        if family.has(name):
            return family
    raise ConfigError(parameter=parameter, value=name, rule=f"one of {_known()}")


def _families() -> Iterator[Family]:
    for place in FAMILIES:
        module, _, name = place.partition(":")
        yield getattr(importlib.import_module(module), name)


def _known() -> str:
    return ", ".join(family.description for family in _families())
