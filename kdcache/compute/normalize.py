"""Normalise uint8 pixels on the device of the model."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Normalise(nn.Module):
    """Map uint8 pixels to normalised float32 images, on the device of the module.

    Args:
        mean: (3,) of each channel, in [0, 1].
        std: (3,) of each channel, above 0.
    """

    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.scale = nn.Buffer(1 / (255 * torch.tensor(std).view(1, 3, 1, 1)), persistent=False)
        offset = torch.tensor(mean) / torch.tensor(std)
        self.offset = nn.Buffer(offset.view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) uint8 to float32, keeping the memory format."""
        return images.float() * self.scale - self.offset
