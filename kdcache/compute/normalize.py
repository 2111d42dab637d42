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
        self.scale = nn.Buffer(torch.empty(1, 3, 1, 1), persistent=False)
        self.offset = nn.Buffer(torch.empty(1, 3, 1, 1), persistent=False)
        self.set(mean, std)

    def set(self, mean: list[float], std: list[float]) -> None:
        """Replace mean and std, (3,) each, in place: a captured CUDA graph then uses them too."""
        self.scale.copy_(1 / (255 * torch.tensor(std).view(1, 3, 1, 1)))
        self.offset.copy_((torch.tensor(mean) / torch.tensor(std)).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) uint8 to float32, keeping the memory format."""
        return images.float() * self.scale - self.offset
