"""Weights that others have published: what is known of them before they are brought.

Enough to refuse what does not fit the data before anything is downloaded, and what the model's
authors did to its images, so that the teacher is asked as it was evaluated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from torch import nn

from kdcache.errors import TeacherError
from kdcache.files import sha256_of

ClassNames = tuple[str, ...]
"""Every name that one class goes by."""


@dataclass(frozen=True)
class PublishedWeights:
    """A model with published weights, not yet brought."""

    arch: str
    """Names exactly these weights: `resnet50.IMAGENET1K_V2`, `timm:resnet18.a1_in1k`."""
    classes: int
    class_names: Sequence[ClassNames] | None
    """Of each class in turn; None where they are not known."""
    is_imagenet: bool
    """The classes are the 1,000 of ImageNet, in their usual order: that of their WordNet ids."""
    mean: list[float]
    """(3,) of the normalisation, in [0, 1]."""
    std: list[float]
    """(3,) likewise."""
    center_crop_ratio: float
    """Side of the centre square that they were evaluated on, in (0, 1] of the short side."""
    image_size: int
    """Height and width that this square was resized to."""
    top1: float | None
    """Percent of ImageNet's validation images, as published."""
    load: Callable[[int], nn.Module]
    """Bring the weights and return the model for images of a height and width.

    Raises:
        TeacherError: if they cannot be brought, are damaged, or are no tensors.
    """


def require_sha256(path: Path, prefix: str, *, source: str) -> None:
    """Check a file that was brought against the digest that its publisher names.

    Raises:
        TeacherError: if its sha256 begins otherwise.
    """
    found = sha256_of(path)
    if not found.startswith(prefix):
        raise TeacherError(
            f"{path} has the sha256 {found[: max(len(prefix), 12)]}, expected {prefix}: it was "
            "not brought whole, or was changed. Remove it and run again, or bring it anew from "
            f"{source}"
        )


def unreadable(path: Path, error: Exception, *, source: str) -> TeacherError:
    """Return the error for a file of weights that a library could not use."""
    if isinstance(error, (SafetensorError, json.JSONDecodeError)):
        what = f"is cut short or damaged ({error})"
    else:
        what = f"does not hold the weights of this model ({error})"
    return TeacherError(f"{path} {what}. Remove it and run again, or bring it anew from {source}")
