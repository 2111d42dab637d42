"""Wide residual networks for small images: `wrn-DEPTH-WIDTH` of the distillation literature."""

from __future__ import annotations

from torch import Tensor, nn


class PreActivationBlock(nn.Module):
    """Two 3x3 convolutions, each after its norm and ReLU.

    Where the number of channels changes, the shortcut is a 1x1 convolution of the activated input;
    elsewhere it is the input itself.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.shortcut: nn.Module | None = None
        if in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H / stride, W / stride)."""
        activated = self.bn1(images).relu()
        shortcut = images if self.shortcut is None else self.shortcut(activated)
        return self.conv2(self.bn2(self.conv1(activated)).relu()) + shortcut


class WideResNet(nn.Module):
    """Three stages of 16, 32 and 64 channels times `width`, without dropout.

    References:
        Zagoruyko, Komodakis 2016, "Wide Residual Networks", table 1.
    """

    def __init__(self, depth: int, width: int, num_classes: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        layers: list[nn.Module] = []
        channels = 16
        for stage_channels, first_stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
            for block in range(blocks):
                stride = first_stride if block == 0 else 1
                layers.append(PreActivationBlock(channels, stage_channels, stride))
                channels = stage_channels
        self.layers = nn.Sequential(*layers)
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) to logits (B, C)."""
        hidden = self.bn(self.layers(self.conv1(images))).relu()
        return self.fc(hidden.mean(dim=(2, 3)))
