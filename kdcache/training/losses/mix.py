"""Mixup and CutMix: two images in one, and with them their labels and the teacher's answers.

The teacher has not seen the mixed image: its probabilities for the two are mixed in the same shares
instead, which costs no forward pass. Where the student sees a mixture of images, the mixture of the
answers is what a teacher that were linear between them would say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdcache.errors import ConfigError
from kdcache.rng import generator


class Box(NamedTuple):
    """Pixels [top, bottom) x [left, right)."""

    top: int
    bottom: int
    left: int
    right: int


class Mix(NamedTuple):
    """How one batch is mixed: image i with image `partners[i]`."""

    share: float
    """Of image i, its label and its answer, in [0, 1]; the partner has the rest."""
    partners: Tensor
    """(B,) int64, a permutation, on the images' device."""
    box: Box | None
    """CutMix: the pixels that come from the partner; None: every pixel is a mean."""

    def images(self, images: Tensor) -> Tensor:
        """Return the mixed images, in their memory format.

        Args:
            images: (B, 3, H, W) float, after normalisation.
        """
        if self.box is None:
            return torch.lerp(images[self.partners], images, self.share)
        top, bottom, left, right = self.box
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = images[:, :, top:bottom, left:right][self.partners]
        return mixed

    def log_probabilities(self, log_probs_BC: Tensor) -> Tensor:
        """Return the logarithm of the mixed probabilities, (B, C), from those of each answer."""
        partners_BC = log_probs_BC[self.partners]
        if self.share in {0, 1}:
            return log_probs_BC if self.share else partners_BC
        return torch.logaddexp(
            log_probs_BC + math.log(self.share), partners_BC + math.log1p(-self.share)
        )


@dataclass(frozen=True)
class Mixer:
    """Draws how to mix a batch, from (seed, epoch, number) alone; with both kinds, one of them.

    References:
        Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization".
        Yun et al. 2019, "CutMix: Regularization Strategy to Train Strong Classifiers with
        Localizable Features".
    """

    mixup: float | None
    """Parameter a of the Beta(a, a) distribution of the share, above 0; None: no mixup."""
    cutmix: float | None
    """Likewise for CutMix, whose box is clipped at the image, so that the share grows."""
    seed: int
    """Of the draws."""

    def __post_init__(self) -> None:
        """Check both parameters."""
        for name, value in (("--mixup", self.mixup), ("--cutmix", self.cutmix)):
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} is {value}, expected a number above 0")
        if self.mixup is None and self.cutmix is None:
            raise ConfigError("neither --mixup nor --cutmix is given, expected one of them")

    def draw(self, images: Tensor, *, epoch: int, batch: int) -> Mix:
        """Return how one batch of an epoch is mixed.

        Args:
            images: (B, 3, H, W), for its shape and device alone.
            epoch: from 0.
            batch: its number in the epoch, from 0.
        """
        rng = generator(self.seed, "mix", epoch, batch)
        both = self.mixup is not None and self.cutmix is not None
        cuts = rng.random() < 1 / 2 if both else self.cutmix is not None
        parameter = self.cutmix if cuts else self.mixup
        assert parameter is not None  # noqa: S101  (checked above)
        # Rounded: the last bit of the C library's powers may differ, a mixture must not.
        share = round(float(rng.beta(parameter, parameter)), 6)
        partners = torch.from_numpy(rng.permutation(len(images))).to(images.device)
        if not cuts:
            return Mix(share, partners, None)
        height, width = images.shape[2:]
        box = _box(rng, share, height, width)
        area = (box.bottom - box.top) * (box.right - box.left)
        return Mix(1 - area / (height * width), partners, box)


def _box(rng: np.random.Generator, share: float, height: int, width: int) -> Box:
    """Return a box of 1 - share of the image around a pixel drawn evenly, clipped at the image."""
    side = math.sqrt(1 - share)
    high, wide = int(height * side), int(width * side)
    top, left = int(rng.integers(height)) - high // 2, int(rng.integers(width)) - wide // 2
    return Box(max(top, 0), min(top + high, height), max(left, 0), min(left + wide, width))
