"""The family of torchvision's classifiers; some also have a stem that does not shrink small images.

torchvision is loaded when one of its models is asked for: it loads torch's compiler for seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from kdcache.errors import ConfigError
from kdcache.models.family import Family, Shape
from kdcache.options import Stem


def _small_resnet(model: nn.Module) -> nn.Module:
    """Replace the stem that divides the image by four: 3x3, stride 1, no pooling."""
    model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


def _small_mobilenet(model: nn.Module) -> nn.Module:
    """Let the first 3x3 convolution keep the size."""
    first = model.get_submodule("features.0.0")
    assert isinstance(first, nn.Conv2d)  # noqa: S101  (torchvision's definition)
    first.stride = (1, 1)
    return model


def _small_shufflenet(model: nn.Module) -> nn.Module:
    """Let the first 3x3 convolution keep the size, and drop the pooling after it."""
    first = model.get_submodule("conv1.0")
    assert isinstance(first, nn.Conv2d)  # noqa: S101  (torchvision's definition)
    first.stride = (1, 1)
    model.maxpool = nn.Identity()
    return model


_SMALL_STEMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "resnet18": _small_resnet,
    "resnet34": _small_resnet,
    "resnet50": _small_resnet,
    "mobilenet_v2": _small_mobilenet,
    "shufflenet_v2_x0_5": _small_shufflenet,
    "shufflenet_v2_x1_0": _small_shufflenet,
}

SMALL_STEM_MODELS = tuple(_SMALL_STEMS)
"""Models with two stems, standard and small; they are tested as students."""

_STEM_SHAPES: dict[tuple[str, Shape], Stem] = {
    ("conv1.weight", (64, 3, 3, 3)): "small",
    ("conv1.weight", (64, 3, 7, 7)): "standard",
}
"""The first convolution of a ResNet tells the stem. The stems of the other models differ only in
strides and pooling, so their tensors do not tell."""

_WITH_AUXILIARY_LOGITS = frozenset({"googlenet", "inception_v3"})

_OTHER_TASKS = ("detection", "optical_flow", "quantization", "segmentation", "video")
"""Modules of `torchvision.models` whose models are not image classifiers."""


def torchvision_classifiers() -> set[str]:
    """Return the names of torchvision's models for classification, registered ones included."""
    from torchvision import models

    modules = (getattr(models, task) for task in _OTHER_TASKS)
    others = {name for module in modules for name in models.list_models(module=module)}
    return set(models.list_models()) - others


class TorchvisionFamily(Family):
    """See `kdcache.models.family.Family`."""

    description = f"{', '.join(SMALL_STEM_MODELS)}, another classifier of torchvision"

    def names(self) -> list[str]:
        """Return all classifiers, the tested ones first."""
        return [*SMALL_STEM_MODELS, *sorted(torchvision_classifiers() - set(SMALL_STEM_MODELS))]

    def has(self, name: str) -> bool:
        """Return True for a classifier of torchvision."""
        return name in _SMALL_STEMS or name in torchvision_classifiers()

    def why_not_trainable(self, name: str) -> str | None:
        """Return a reason for models with auxiliary classifiers."""
        return "it trains with auxiliary logits" if name in _WITH_AUXILIARY_LOGITS else None

    def has_two_stems(self, name: str) -> bool:
        """Return True for the models of `SMALL_STEM_MODELS`."""
        return name in _SMALL_STEMS

    def has_hidden_stem(self, name: str) -> bool:
        """Return True for the models whose stems differ only in strides and pooling."""
        return name in _SMALL_STEMS and not name.startswith("resnet")

    def stem_of_shapes(self, name: str, shapes: Mapping[str, Shape]) -> Stem | None:
        """Return the stem of a ResNet from its first convolution; None for other models."""
        first = ("conv1.weight", shapes.get("conv1.weight", ()))
        return _STEM_SHAPES.get(first) if name.startswith("resnet") else None

    def make(
        self, name: str, *, num_classes: int, image_size: int, stem: Stem | None = None
    ) -> nn.Module:
        """Return a model, with the small stem if `stem` says so.

        Raises:
            ConfigError: if it cannot be made for this size.
        """
        from torchvision import models

        sized: dict[str, Any] = {}
        if name.startswith("vit_"):
            sized = {"image_size": image_size}
        elif name.startswith("maxvit_"):
            sized = {"input_size": (image_size, image_size)}
        elif name in _WITH_AUXILIARY_LOGITS:
            sized = {"init_weights": False}  # drawing takes a minute; loaded ones replace them
        try:
            model: nn.Module = models.get_model(name, num_classes=num_classes, **sized)
        except (AssertionError, ValueError) as error:
            raise ConfigError(
                f"model is {name!r} for images of {image_size} px, expected a size that it can be "
                f"made for: {error}",
                parameter="model",
                value=name,
            ) from error
        return _SMALL_STEMS[name](model) if stem == "small" else model


FAMILY = TorchvisionFamily()
