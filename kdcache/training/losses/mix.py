"""Mixup and CutMix: mix pairs of images, their labels and the teacher's probabilities.

The teacher does not see the mixed image. Its probabilities for the two images are mixed with the
same weights instead, which needs no forward pass; it is what a teacher that is linear between the
two images would predict.
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
    """The pixels [top, bottom) x [left, right)."""

    top: int
    bottom: int
    left: int
    right: int


class Mix(NamedTuple):
    """How a batch is mixed: image i with image `partners[i]`."""

    share: float
    """Weight of image i in its mixture, in [0, 1] (lambda in the papers)."""
    partners: Tensor
    """(B,) int64, a permutation of the batch, on the device of the images."""
    box: Box | None
    """CutMix: the pixels that come from the partner. None: mixup."""

    def images(self, images: Tensor) -> Tensor:
        """Return the mixed images, (B, 3, H, W), in the memory format of the images.

        Args:
            images: (B, 3, H, W) float, normalised.
        """
        if self.box is None:
            return torch.lerp(images[self.partners], images, self.share)
        top, bottom, left, right = self.box
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = images[:, :, top:bottom, left:right][self.partners]
        return mixed

    def log_probabilities(self, log_probs_BC: Tensor) -> Tensor:
        """Return the log of the mixed probabilities, (B, C), from the log-probabilities (B, C)."""
        partners_BC = log_probs_BC[self.partners]
        if self.share in {0, 1}:
            return log_probs_BC if self.share else partners_BC
        return torch.logaddexp(
            log_probs_BC + math.log(self.share), partners_BC + math.log1p(-self.share)
        )


@dataclass(frozen=True)
class Mixer:
    """Draws how to mix a batch, as a function of (seed, epoch, batch).

    If both mixup and CutMix are given, each batch uses one of them, with probability 1/2.

    References:
        Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization".
        Yun et al. 2019, "CutMix: Regularization Strategy to Train Strong Classifiers with
        Localizable Features".
    """

    mixup: float | None
    """Parameter a > 0 of the Beta(a, a) distribution of the weight; None: no mixup."""
    cutmix: float | None
    """The same for CutMix. Clipping the box at the image's border increases the weight."""
    seed: int
    """Seed of the draws."""

    def __post_init__(self) -> None:
        """Check the parameters."""
        for name, value in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(parameter=name, value=value, rule="a number above 0")
        if self.mixup is None and self.cutmix is None:
            raise ConfigError("neither --mixup nor --cutmix is given, expected at least one")

    def draw(self, images: Tensor, *, epoch: int, batch: int) -> Mix:
        """Return how one batch of an epoch is mixed.

        Args:
            images: (B, 3, H, W); only the shape and the device are used.
            epoch: index of the epoch.
            batch: index of the batch in the epoch.
        """
        rng = generator(self.seed, "mix", epoch, batch)
        both = self.mixup is not None and self.cutmix is not None
        cuts = rng.random() < 1 / 2 if both else self.cutmix is not None
        parameter = self.cutmix if cuts else self.mixup
        assert parameter is not None  # noqa: S101  (checked above)
        # Rounded, because the last bit of the C library's pow differs between machines.
        share = round(float(rng.beta(parameter, parameter)), 6)
        partners = torch.from_numpy(rng.permutation(len(images))).to(images.device)
        if not cuts:
            return Mix(share, partners, None)
        height, width = images.shape[2:]
        box = _box(rng, share, height, width)
        area = (box.bottom - box.top) * (box.right - box.left)
        return Mix(1 - area / (height * width), partners, box)


def _box(rng: np.random.Generator, share: float, height: int, width: int) -> Box:
    """Return a box with 1 - share of the area around a uniform pixel, clipped at the border."""
    side = math.sqrt(1 - share)
    box_height, box_width = int(height * side), int(width * side)
    top = int(rng.integers(height)) - box_height // 2
    left = int(rng.integers(width)) - box_width // 2
    bottom, right = min(top + box_height, height), min(left + box_width, width)
    return Box(max(top, 0), bottom, max(left, 0), right)
