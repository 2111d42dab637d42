"""Every model that goes by a name: one function that makes it for C classes and an image size.

torchvision is loaded for a model of its own alone: it loads torch's compiler, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from kdcache.data.policy import MAX_SMALL_IMAGE_SIZE
from kdcache.errors import ConfigError
from kdcache.models.cifar_resnet import CifarResNet
from kdcache.models.vgg import vgg8
from kdcache.models.wide_resnet import WideResNet


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


_CIFAR: dict[str, Callable[[int], nn.Module]] = {
    **{f"resnet{depth}": partial(CifarResNet, depth) for depth in (8, 20, 32, 56)},
    "wrn-16-2": partial(WideResNet, 16, 2),
    "wrn-40-2": partial(WideResNet, 40, 2),
    "vgg8": vgg8,
}
_TORCHVISION: dict[str, Callable[[nn.Module], nn.Module]] = {
    "resnet18": _small_resnet,
    "resnet34": _small_resnet,
    "resnet50": _small_resnet,
    "mobilenet_v2": _small_mobilenet,
    "shufflenet_v2_x0_5": _small_shufflenet,
    "shufflenet_v2_x1_0": _small_shufflenet,
}
CIFAR_MODELS = tuple(_CIFAR)
"""Models made for images of 32 px."""

MODELS = (*_CIFAR, *_TORCHVISION)
"""Models that are tested as students and have a stem for small images."""

TIMM_PREFIX = "timm:"
"""Prefix of a model that timm makes."""

_WITH_AUXILIARY_LOGITS = frozenset({"googlenet", "inception_v3"})

_OTHER_TASKS = ("detection", "optical_flow", "quantization", "segmentation", "video")
"""Modules of `torchvision.models` whose models are no classifiers of images."""


def list_models() -> list[str]:
    """Return the names that `make_model` accepts: ours for small images, then torchvision's.

    timm's are not listed: `timm:NAME` for any of `timm.list_models()`.
    """
    ours = (*_CIFAR, *_TORCHVISION)
    return [*ours, *sorted(torchvision_classifiers() - set(ours))]


def torchvision_classifiers() -> set[str]:
    """Return the names of torchvision's models for classification, registered ones included."""
    from torchvision import models

    modules = (getattr(models, task) for task in _OTHER_TASKS)
    others = {name for module in modules for name in models.list_models(module=module)}
    return set(models.list_models()) - others


def import_timm(option: str, value: str) -> Any:
    """Return timm.

    Raises:
        ConfigError: if it is not installed; names the option that needs it.
    """
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            f"{option} is {value}, but timm is not installed. Run: pip install 'kdcache[timm]'"
        ) from error
    return timm


def require_trainable(name: str, *, option: str) -> None:
    """Check that the model exists and that its output in training mode is logits alone.

    Args:
        name: name of the model, as in `make_model`.
        option: option that names the model, for the error message.

    Raises:
        ConfigError: if it does not; lists the tested models.
    """
    expected = (
        f"expected one of {', '.join(MODELS)}, another classifier of torchvision, or "
        f"{TIMM_PREFIX}NAME"
    )
    if name in _WITH_AUXILIARY_LOGITS:
        raise ConfigError(f"{option} is {name}, which trains with auxiliary logits; {expected}")
    if name.startswith(TIMM_PREFIX):
        _require_timm_model(name, option)
    elif name not in MODELS and name not in torchvision_classifiers():
        raise ConfigError(f"{option} is {name}, {expected}")


def make_model(name: str, *, num_classes: int, image_size: int) -> nn.Module:
    """Return a model with fresh weights, drawn from torch's generator.

    Args:
        name: one of `MODELS`, another classifier of torchvision, or `timm:NAME`.
        num_classes: C.
        image_size: height and width of its images; up to 64 px those of `MODELS` that were made
            for ImageNet get a stem that does not shrink them.

    Raises:
        ConfigError: if the name is unknown; lists the known ones.
    """
    if name in _CIFAR:
        return _CIFAR[name](num_classes)
    if name.startswith(TIMM_PREFIX):
        return _make_timm_model(name, num_classes=num_classes, image_size=image_size)
    if name not in torchvision_classifiers():
        raise ConfigError(
            f"model is {name!r}, expected one of {', '.join(MODELS)}, another classifier of "
            f"torchvision, or {TIMM_PREFIX}NAME"
        )
    from torchvision import models

    sized: dict[str, Any] = {}
    if name.startswith("vit_"):
        sized = {"image_size": image_size}
    elif name.startswith("maxvit_"):
        sized = {"input_size": (image_size, image_size)}
    elif name in _WITH_AUXILIARY_LOGITS:
        sized = {"init_weights": False}  # they are replaced, and drawing them takes a minute
    try:
        model: nn.Module = models.get_model(name, num_classes=num_classes, **sized)
    except (AssertionError, ValueError) as error:
        raise ConfigError(
            f"model is {name!r} for images of {image_size} px, expected a size that it can be made "
            f"for: {error}"
        ) from error
    is_small = name in _TORCHVISION and image_size <= MAX_SMALL_IMAGE_SIZE
    return _TORCHVISION[name](model) if is_small else model


def _require_timm_model(name: str, option: str) -> Any:
    """Return timm, if it has such a model."""
    timm = import_timm(option, name)
    if not timm.is_model(name.removeprefix(TIMM_PREFIX).partition(".")[0]):
        raise ConfigError(f"{option} is {name!r}, expected timm: and one of timm.list_models()")
    return timm


def _make_timm_model(name: str, *, num_classes: int, image_size: int) -> nn.Module:
    timm = _require_timm_model(name, "model")
    timm_name = name.removeprefix(TIMM_PREFIX)
    about = timm.get_pretrained_cfg(timm_name)
    is_fixed = about is not None and about.fixed_input_size
    sized = {"img_size": image_size} if is_fixed else {}
    model: nn.Module = timm.create_model(timm_name, num_classes=num_classes, **sized)
    return model
