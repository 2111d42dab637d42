"""The family of models for images of 32 px, as the distillation literature uses them on CIFAR."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from kdcache.models.cifar_resnet import CifarResNet
from kdcache.models.family import Family
from kdcache.models.vgg import vgg8
from kdcache.models.wide_resnet import WideResNet
from kdcache.options import Stem

_MAKERS: dict[str, Callable[[int], nn.Module]] = {
    **{f"resnet{depth}": partial(CifarResNet, depth) for depth in (8, 20, 32, 56)},
    "wrn-16-2": partial(WideResNet, 16, 2),
    "wrn-40-2": partial(WideResNet, 40, 2),
    "vgg8": vgg8,
}

CIFAR_MODELS = tuple(_MAKERS)
"""Names of the models of this family."""


class CifarFamily(Family):
    """See `kdcache.models.family.Family`."""

    description = ", ".join(CIFAR_MODELS)

    def names(self) -> tuple[str, ...]:
        """Return all names."""
        return CIFAR_MODELS

    def has(self, name: str) -> bool:
        """Return True for one of the names."""
        return name in _MAKERS

    def make(
        self,
        name: str,
        *,
        num_classes: int,
        image_size: int,  # noqa: ARG002
        stem: Stem | None = None,  # noqa: ARG002  (no model has two stems)
    ) -> nn.Module:
        """Return a model; it takes images of any size."""
        return _MAKERS[name](num_classes)


FAMILY = CifarFamily()
