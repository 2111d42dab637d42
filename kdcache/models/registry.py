"""Models by name. A new family of models is one new file and one line here."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping

from torch import nn

from kdcache.arguments import require_int
from kdcache.data.policy import MAX_SMALL_IMAGE_SIZE
from kdcache.errors import ConfigError
from kdcache.models.cifar_models import CIFAR_MODELS
from kdcache.models.family import Family, Shape
from kdcache.models.torchvision_models import SMALL_STEM_MODELS
from kdcache.options import Stem

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


def make_model(
    name: str, *, num_classes: int, image_size: int, stem: Stem | None = None
) -> nn.Module:
    """Return a model with fresh weights, drawn from torch's generator.

    Args:
        name: one of `list_models`, or `timm:NAME`.
        num_classes: C; the model maps (B, 3, S, S) to logits (B, C).
        image_size: S, height and width of its images.
        stem: for some models that were made for ImageNet: `standard`, or `small`, which does not
            shrink the image. The default is `default_stem`.

    Raises:
        ConfigError: if the name is unknown, a number is no integer above 0, the model cannot be
            made for this size, or it has only one stem and `stem` is given.
    """
    num_classes = require_int("num_classes", num_classes, minimum=1)
    image_size = require_int("image_size", image_size, minimum=1)
    family = _family_of(name, parameter="model")
    if stem is None:
        stem = default_stem(name, image_size)
    elif not family.has_two_stems(name):
        raise ConfigError(
            parameter="stem",
            value=stem,
            problem=f"{name} has only one stem; models with two are {', '.join(SMALL_STEM_MODELS)}",
            remedy="Leave the option out",
        )
    return family.make(name, num_classes=num_classes, image_size=image_size, stem=stem)


def default_stem(name: str, image_size: int) -> Stem | None:
    """Return the stem of a new model: small up to 64 px, else standard; None if it has only one.

    Args:
        name: name of the model, as in `make_model`.
        image_size: height and width of its images, in pixels.

    Raises:
        ConfigError: if the name is unknown.
    """
    if not _family_of(name, parameter="model").has_two_stems(name):
        return None
    return "small" if image_size <= MAX_SMALL_IMAGE_SIZE else "standard"


def has_two_stems(name: str) -> bool:
    """Return True if the model can be made with a small or a standard stem.

    Raises:
        ConfigError: if the name is unknown.
    """
    return _family_of(name, parameter="model").has_two_stems(name)


def has_hidden_stem(name: str) -> bool:
    """Return True if the model has two stems with the same tensors, so that a file tells neither.

    Raises:
        ConfigError: if the name is unknown.
    """
    return _family_of(name, parameter="model").has_hidden_stem(name)


def stem_of_shapes(name: str, shapes: Mapping[str, Shape]) -> Stem | None:
    """Return the stem of a model with two stems from its tensors; None if both have the same.

    Args:
        name: name of the model, as in `make_model`.
        shapes: name -> shape of each tensor of a state dict.
    """
    return _family_of(name, parameter="model").stem_of_shapes(name, shapes)


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
