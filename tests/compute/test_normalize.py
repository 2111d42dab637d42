"""Normalisation equals that of torchvision and keeps the memory format."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.functional import normalize

from kdcache.compute.normalize import Normalise

MEAN, STD = [0.49, 0.48, 0.45], [0.25, 0.2, 0.3]


def pixels(count: int = 6, size: int = 8) -> Tensor:
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    return images.contiguous(memory_format=torch.channels_last)


def test_normalisation_is_that_of_torchvision():
    images = pixels()
    expected = normalize(images / 255, MEAN, STD)
    # One multiplication and one subtraction instead of two divisions and one: a few roundings of
    # values of at most 4.
    torch.testing.assert_close(Normalise(MEAN, STD)(images), expected, rtol=0, atol=2e-6)


def test_normalisation_keeps_the_memory_format():
    images = Normalise(MEAN, STD)(pixels())
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_normalisation_is_no_part_of_the_weights():
    assert Normalise(MEAN, STD).state_dict() == {}
