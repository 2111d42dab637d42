"""Teachers for the tests of the store, named as `tests.store.teachers:NAME`."""

from __future__ import annotations

import os
import time

import torch
from torch import Tensor, nn

from kdcache.models.registry import make_model
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


class Dropping(Projection):
    """Drops pixels in evaluation mode too."""

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, S, S) to (B, C)."""
        return super().forward(nn.functional.dropout(images, 0.1, training=True))


class Comparing(Projection):
    """Sees each image beside the others of its batch."""

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, S, S) to (B, C)."""
        return super().forward(nn.functional.batch_norm(images, None, None, training=True))


class Hungry(Projection):
    """Needs more memory than any machine has for more than five images."""

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, S, S) to (B, C)."""
        torch.empty(max(len(images) - 5, 0) << 50, dtype=torch.uint8, device=images.device)
        return super().forward(images)


class Growing(Projection):
    """Needs more memory than any machine has after so many batches."""

    batches_left = 0

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, S, S) to (B, C)."""
        Growing.batches_left -= 1
        torch.empty(int(Growing.batches_left < 0) << 50, dtype=torch.uint8, device=images.device)
        return super().forward(images)


def growing() -> nn.Module:
    """Return a teacher that fits at first."""
    return Growing(4, seed=1)


def dropping() -> nn.Module:
    """Return a teacher that answers otherwise each time."""
    return Dropping(4, seed=1)


def comparing() -> nn.Module:
    """Return a teacher whose answers depend on the batch."""
    return Comparing(4, seed=1)


def hungry() -> nn.Module:
    """Return a teacher for which a batch of five fits."""
    return Hungry(4, seed=1)


def convolutional() -> nn.Module:
    """Return a teacher of eight layers, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return make_model("resnet8", num_classes=4, image_size=32)


def softmax() -> nn.Module:
    """Return the probabilities of `tests.teachers:projection`."""
    return nn.Sequential(Projection(4, seed=1), nn.Softmax(dim=1))


def one_channel() -> nn.Module:
    """Return a teacher for grey images."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class AsksForMore(Projection):
    """Takes labels too."""

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        """Map (B, 3, S, S) to (B, C)."""
        return super().forward(images) + labels


def asks_for_more() -> nn.Module:
    """Return a teacher that cannot be called with images alone."""
    return AsksForMore(4, seed=1)


def too_many() -> nn.Module:
    """Return a teacher with another number of classes."""
    return Projection(5, seed=1)
