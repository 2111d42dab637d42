"""ResNets for small images, as the CIFAR literature counts their layers."""

from __future__ import annotations

from torch import Tensor, nn


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
        # In place: a norm's backward reads no output of its own, and memory is what limits a CPU.
        hidden = self.bn1(self.conv1(images)).relu_()
        return self.bn2(self.conv2(hidden)).add_(shortcut).relu_()


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
        hidden = self.bn1(self.conv1(images)).relu_()
        return self.fc(self.layers(hidden).mean(dim=(2, 3)))
