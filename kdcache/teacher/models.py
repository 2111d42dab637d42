"""The models that kdcache knows by name, for teachers and students alike."""

from __future__ import annotations

from collections.abc import Callable

import torchvision
from torch import Tensor, nn

from kdcache.data.beton import LARGEST_SMALL_SIZE
from kdcache.errors import ConfigError


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut that has no parameters (option A of the paper)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.added_channels = out_channels - in_channels

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H / stride, W / stride)."""
        shortcut = images
        if self.added_channels:
            shortcut = images[:, :, :: self.stride, :: self.stride]
            half = self.added_channels // 2
            shortcut = nn.functional.pad(shortcut, (0, 0, 0, 0, half, self.added_channels - half))
        hidden = self.bn1(self.conv1(images)).relu()
        return (self.bn2(self.conv2(hidden)) + shortcut).relu()


class CifarResNet(nn.Module):
    """ResNet for small images: three stages of 16, 32 and 64 channels.

    References:
        He, Zhang, Ren, Sun 2016, "Deep Residual Learning for Image Recognition", section 4.2.
    """

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        layers: list[nn.Module] = []
        channels = 16
        for width, first_stride in ((16, 1), (32, 2), (64, 2)):
            for block in range(blocks):
                layers.append(BasicBlock(channels, width, first_stride if block == 0 else 1))
                channels = width
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) to logits (B, C)."""
        hidden = self.bn1(self.conv1(images)).relu()
        return self.fc(self.layers(hidden).mean(dim=(2, 3)))


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


_CIFAR_DEPTHS = {f"resnet{depth}": depth for depth in (8, 20, 32, 56)}
_TORCHVISION: dict[str, Callable[[nn.Module], nn.Module]] = {
    "resnet18": _small_resnet,
    "resnet34": _small_resnet,
    "resnet50": _small_resnet,
    "mobilenet_v2": _small_mobilenet,
}
CIFAR_MODELS = tuple(_CIFAR_DEPTHS)
"""Models made for images of 32 px."""

MODELS = (*_CIFAR_DEPTHS, *_TORCHVISION)
"""Every name that `make_model` takes."""


def make_model(name: str, *, num_classes: int, image_size: int) -> nn.Module:
    """Return a model with fresh weights, drawn from torch's generator.

    Args:
        name: one of `MODELS`.
        num_classes: C.
        image_size: height and width of its images; up to 64 px the models of ImageNet get a stem
            that does not shrink them.

    Raises:
        ConfigError: if the name is not known; lists those that are.
    """
    if name in _CIFAR_DEPTHS:
        return CifarResNet(_CIFAR_DEPTHS[name], num_classes)
    if name not in _TORCHVISION:
        raise ConfigError(f"model is {name!r}, expected one of {', '.join(MODELS)}")
    model: nn.Module = getattr(torchvision.models, name)(num_classes=num_classes)
    return _TORCHVISION[name](model) if image_size <= LARGEST_SMALL_SIZE else model
