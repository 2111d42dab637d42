"""Describe published weights before they are downloaded.

The description is enough to refuse a model that does not fit the data before any download. It
includes the preprocessing with which the authors evaluated the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from torch import nn

from kdcache.data.policy import FILTERS, Filter
from kdcache.errors import TeacherError
from kdcache.files import sha256_of
from kdcache.progress import logger

ClassNames = tuple[str, ...]
"""All names of one class."""


def known_filter(name: str, arch: str) -> Filter:
    """Return the filter of this name, or bilinear, with a warning, for one that kdcache lacks.

    Args:
        name: the publisher's name of the filter with which the weights were evaluated.
        arch: the weights, for the warning.
    """
    for known in FILTERS:
        if name == known:
            return known
    logger.warning(
        "%s was evaluated with the filter %s, which kdcache does not have; its clean view is "
        "resized with the bilinear filter",
        arch,
        name,
    )
    return "bilinear"


@dataclass(frozen=True)
class PublishedWeights:
    """A model with published weights that are not downloaded yet."""

    arch: str
    """Identifies exactly these weights: `resnet50.IMAGENET1K_V2`, `timm:resnet18.a1_in1k`."""
    classes: int
    class_names: Sequence[ClassNames] | None
    """Names per class, in label order; None if unknown."""
    is_imagenet: bool
    """True if the classes are the 1,000 of ImageNet in the order of their WordNet ids."""
    mean: list[float]
    """(3,) of the normalisation, in [0, 1]."""
    std: list[float]
    """(3,) of the normalisation, above 0."""
    center_crop_ratio: float
    """Side of the centre crop of the evaluation, as a fraction of the short side, in (0, 1]."""
    clean_filter: Filter
    """Filter of the evaluation's resizing."""
    image_size: int
    """Height and width of the crop after resizing, in pixels."""
    top1: float | None
    """Published top-1 accuracy on ImageNet's validation split, in percent; None if unknown."""
    load: Callable[[int], nn.Module]
    """Download the weights and return the model for square images of a given size in pixels.

    Raises:
        TeacherError: if the weights cannot be downloaded, are damaged, or are not tensors.
    """

    @property
    def normalisation(self) -> tuple[list[float], list[float]]:
        """Mean and std, (3,) each."""
        return self.mean, self.std


def require_sha256(path: Path, prefix: str, *, source: str) -> None:
    """Check a downloaded file against the digest that its publisher gives.

    Raises:
        TeacherError: if its hex sha256 does not start with `prefix`.
    """
    found = sha256_of(path)
    if not found.startswith(prefix):
        raise TeacherError(
            f"{path} has the sha256 {found[: max(len(prefix), 12)]}, expected {prefix}: the "
            "download is incomplete, or the file was changed. Remove it and run again, or download "
            f"it again from {source}"
        )


def unreadable(path: Path, error: Exception, *, source: str) -> TeacherError:
    """Return the error for a file of weights that a library could not load."""
    if isinstance(error, (SafetensorError, json.JSONDecodeError)):
        problem = f"is cut short or damaged ({error})"
    else:
        problem = f"does not hold the weights of this model ({error})"
    return TeacherError(
        f"{path} {problem}. Remove it and run again, or download it again from {source}"
    )
