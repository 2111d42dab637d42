"""Normalise uint8 pixels on the device of the model."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Normalise(nn.Module):
    """uint8 pixels to float32 images of mean 0 and standard deviation 1, on the device.

    Args:
        mean: (3,) in [0, 1].
        std: (3,) above 0.
    """

    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.scale = nn.Buffer(1 / (255 * torch.tensor(std).view(1, 3, 1, 1)), persistent=False)
        offset = torch.tensor(mean) / torch.tensor(std)
        self.offset = nn.Buffer(offset.view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) uint8 to float32, keeping the memory format."""
        return images.float() * self.scale - self.offset
