"""Teachers for the tests, named as `tests.teachers:NAME`."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Projection(nn.Module):
    """A fixed linear map of all pixels: two views that differ in a pixel differ in the logits."""

    def __init__(self, num_classes: int, seed: int, image_size: int = 32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(num_classes, 3 * image_size**2, generator=generator)
        self.weight = nn.Parameter(weight / image_size)

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, S, S) to (B, C)."""
        return images.contiguous().flatten(1) @ self.weight.T


def projection() -> nn.Module:
    """Return a teacher for 4 classes of 32 px images."""
    return Projection(4, seed=1)


def other_projection() -> nn.Module:
    """Return another one."""
    return Projection(4, seed=2)


def projection_16() -> nn.Module:
    """Return one for images of 16 px."""
    return Projection(4, seed=1, image_size=16)


def three_classes() -> nn.Module:
    """Return a teacher for 3 classes of 32 px images."""
    return Projection(3, seed=1)


def five_classes() -> nn.Module:
    """Return one with another number of classes."""
    return Projection(5, seed=1)


def not_a_number() -> nn.Module:
    """Return one that answers nan."""
    model = Projection(4, seed=1)
    with torch.no_grad():
        model.weight[2] = float("nan")
    return model


def not_a_module() -> str:
    """Return no model at all."""
    return "teacher"
