"""The VGG for small images that the distillation literature calls vgg8."""

from __future__ import annotations

from torch import nn

_CHANNELS = (64, 128, 256, 512, 512)
_WITH_POOLING = 3
"""Number of first convolutions that a 2x2 pooling follows: 32 px become 4 px before the mean."""


def vgg8(num_classes: int) -> nn.Module:
    """Return five 3x3 convolutions, a mean over the image, and a linear layer.

    It maps (B, 3, H, W), H and W at least 8, to logits (B, C). The convolutions have
    biases, which the norms after them make redundant, because the parameter counts in the
    literature include them.

    References:
        Tian, Krishnan, Isola 2020, "Contrastive Representation Distillation", appendix.
    """
    layers: list[nn.Module] = []
    in_channels = 3
    for number, out_channels in enumerate(_CHANNELS):
        convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        layers += [convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
        if number < _WITH_POOLING:
            layers.append(nn.MaxPool2d(2))
        in_channels = out_channels
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_channels, num_classes)]
    return nn.Sequential(*layers)
