"""Teachers for the tests of the store, named as `tests.store.teachers:NAME`."""

from __future__ import annotations

import os
import time

import torch
from torch import Tensor, nn

from tests.teachers import Projection

SHAPES_SEEN: list[tuple[int, ...]] = []
"""Shape of each batch that `counted` was asked about."""

DELAY = "KDCACHE_TEST_DELAY"
"""Environment variable: seconds that `slow` takes for a batch."""


class Counted(Projection):
    """Notes what it is asked."""

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, S, S) to (B, C)."""
        SHAPES_SEEN.append(tuple(images.shape))
        return super().forward(images)


class Failing(Projection):
    """Answers nan for one image."""

    bad: Tensor | None = None
    """(3, S, S) the image, normalised."""

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, S, S) to (B, C)."""
        logits = super().forward(images)
        if self.bad is not None:
            is_bad = (images - self.bad).abs().amax(dim=(1, 2, 3)) < 1e-4
            logits[is_bad, 1] = float("nan")
        return logits


class Slow(Projection):
    """Takes its time."""

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, S, S) to (B, C)."""
        time.sleep(float(os.environ.get(DELAY, "0")))
        return super().forward(images)


class WithHead(nn.Module):
    """Ends in a linear layer, whose input are its features."""

    WIDTH = 6

    def __init__(self) -> None:
        super().__init__()
        self.body = Projection(self.WIDTH, seed=5)
        self.head = nn.Linear(self.WIDTH, 4)
        generator = torch.Generator().manual_seed(6)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(4, self.WIDTH, generator=generator))
            self.head.bias.copy_(torch.randn(4, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, S, S) to (B, C)."""
        return self.head(torch.relu(self.body(images)))


def counted() -> nn.Module:
    """Return a teacher that fills `SHAPES_SEEN`."""
    return Counted(4, seed=1)


def failing() -> nn.Module:
    """Return a teacher that fails where `Failing.bad` says."""
    return Failing(4, seed=1)


def slow() -> nn.Module:
    """Return a teacher that can be interrupted."""
    return Slow(4, seed=1)


def with_head() -> nn.Module:
    """Return a teacher that has features."""
    return WithHead()


def small() -> nn.Module:
    """Return a teacher for 16 px images."""
    return Projection(4, seed=1, image_size=16)


def projection() -> nn.Module:
    """Return another teacher under the name of `tests.teachers:projection`."""
    return Projection(4, seed=3)


def huge() -> nn.Module:
    """Return a teacher whose logits no float16 can hold."""
    model = Projection(4, seed=1)
    with torch.no_grad():
        model.weight *= 1e6
    return model
