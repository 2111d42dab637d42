"""Compute a view's box and flip from (seed, view number, view key).

View 0 is the clean view. Views from 1 follow the policy. The teacher pass and the student's loader
evaluate the same function inside the decoder. So only seed and policy are stored, and the student
sees exactly the pixels that the teacher saw.

The view key is a part of the digest of the image's decoded pixels (`kdcache.data.digests`). So an
image has the same views in any order, packing or part of a data set.

A view is a box in the stored image and a flip: (top, left, height, width, flip). The box is cut
out, with zeros outside the image, resized to the image size, and then mirrored if `flip` is 1.
`kdcache.data.photometric_parameters` defines the changes of pixels that follow.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kdcache.compiled import compiled
from kdcache.data.beton_manifest import BetonManifest
from kdcache.data.philox import below, log_uniform, philox, uniform
from kdcache.data.policy import (
    CENTER_CROP_RATIO,
    CLEAN,
    MAX_SMALL_IMAGE_SIZE,
    PAD_CROP,
    Policy,
    PolicyNumbers,
)
from kdcache.errors import ConfigError

ATTEMPTS = 10
"""Number of boxes that are tried before a centre box is taken, as in torchvision."""

Box = tuple[np.int64, np.int64, np.int64, np.int64, np.int64]
"""Top, left, height, width, flip."""

_STREAM_VIEWS = np.uint64(0x7669657773)  # "views"


class Views(NamedTuple):
    """Everything that a view's pixels depend on, except the image and the view number."""

    policy: Policy
    seed: int
    image_size: int
    center_crop_ratio: float = CENTER_CROP_RATIO
    """Side of the clean view's centre square above 64 px, as a fraction of the short side."""


def default_views(
    data: BetonManifest, *, policy: str | None = None, seed: int = 0, image_size: int | None = None
) -> Views:
    """Return the views of a data set, with the manifest's policy and image size as defaults."""
    return Views(Policy.parse(policy or data.policy), seed, image_size or data.image_size)


def view_parameters(
    policy: Policy | str,
    seed: int,
    view: int,
    view_keys: npt.ArrayLike,
    sizes: npt.ArrayLike,
    *,
    center_crop_ratio: float = CENTER_CROP_RATIO,
) -> npt.NDArray[np.int32]:
    """Return the boxes and flips of one view, for every image.

    Args:
        policy: a policy, or the text of one.
        seed: the store's view seed, in [0, 2^64).
        view: view number; 0 is the clean view.
        view_keys: (n,) integers in [0, 2^64), such as `Beton.view_keys`.
        sizes: (n, 2) height and width of the stored images, or one (height, width) for all.
        center_crop_ratio: side of the clean view's centre square, as a fraction of the short side,
            in (0, 1].

    Returns:
        (n, 5) int32: top, left, height, width, flip (0 or 1). If the box includes padding, top or
        left is negative, or the box ends outside the image.
    """
    if isinstance(policy, str):
        policy = Policy.parse(policy)
    keys = validate_view_keys(view_keys)
    shape = np.broadcast_to(np.asarray(sizes, dtype=np.int64), (len(keys), 2))
    boxes = np.empty((len(keys), 5), dtype=np.int32)
    numbers = policy.numbers(center_crop_ratio)
    _fill(numbers, validate_seed(seed), validate_view(view), keys, shape, boxes)
    return boxes


def validate_seed(seed: int) -> np.uint64:
    """Check a view seed and return it as uint64.

    Raises:
        ConfigError: if it is outside [0, 2^64).
    """
    if not 0 <= seed < 2**64:
        raise ConfigError(f"view seed is {seed}, expected a number in [0, 2^64)")
    return np.uint64(seed)


def validate_view(view: int) -> np.uint64:
    """Check a view number and return it as uint64.

    Raises:
        ConfigError: if it is outside [0, 2^64).
    """
    if not 0 <= view < 2**64:
        raise ConfigError(f"view is {view}, expected a number in [0, 2^64)")
    return np.uint64(view)


def validate_view_keys(view_keys: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """Check view keys and return them as uint64.

    Raises:
        ConfigError: if they are not integers >= 0.
    """
    keys = np.asarray(view_keys)
    if len(keys) and not np.issubdtype(keys.dtype, np.integer):
        raise ConfigError(f"view keys are {keys.dtype}, expected integers")
    if len(keys) and keys.min() < 0:
        raise ConfigError(f"view key is {keys.min()}, expected a number of at least 0")
    return keys.astype(np.uint64)


@compiled()
def _fill(
    numbers: PolicyNumbers,
    seed: np.uint64,
    view: np.uint64,
    view_keys: npt.NDArray[np.uint64],
    sizes: npt.NDArray[np.int64],
    boxes: npt.NDArray[np.int32],
) -> None:
    for i in range(len(view_keys)):
        boxes[i] = view_box(numbers, seed, view, view_keys[i], sizes[i, 0], sizes[i, 1])


@compiled()
def view_box(
    numbers: PolicyNumbers,
    seed: np.uint64,
    view: np.uint64,
    view_key: np.uint64,
    height: np.int64,
    width: np.int64,
) -> Box:
    """Return (top, left, height, width, flip) of one view as int64.

    Args:
        numbers: a PolicyNumbers.
        seed: uint64.
        view: uint64.
        view_key: uint64.
        height: int64, of the stored image.
        width: int64, of the stored image.
    """
    if view == 0 or numbers.kind == CLEAN:
        return _clean_box(height, width, numbers.center_crop_ratio)
    first, second, third, _ = philox(seed, _STREAM_VIEWS, view_key, view, np.uint64(0))
    flip = np.int64(first >> np.uint64(63)) if numbers.flip else np.int64(0)
    if numbers.kind == PAD_CROP:
        num_offsets = 2 * numbers.padding + 1
        top = below(second, num_offsets) - numbers.padding
        left = below(third, num_offsets) - numbers.padding
        return top, left, height, width, flip
    for attempt in range(ATTEMPTS):
        draws = philox(seed, _STREAM_VIEWS, view_key, view, np.uint64(attempt + 1))
        share = numbers.scale_low + uniform(draws[0]) * (numbers.scale_high - numbers.scale_low)
        area = share * np.float64(height * width)
        ratio = log_uniform(draws[1], numbers.log_ratio_low, numbers.log_ratio_high)
        box_width = np.int64(np.floor(np.sqrt(area * ratio) + 0.5))
        box_height = np.int64(np.floor(np.sqrt(area / ratio) + 0.5))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = below(draws[2], height - box_height + 1)
            left = below(draws[3], width - box_width + 1)
            return top, left, box_height, box_width, flip
    box_height, box_width = height, width
    if width < height * numbers.ratio_low:
        box_height = max(np.int64(1), np.int64(np.floor(width / numbers.ratio_low + 0.5)))
    elif width > height * numbers.ratio_high:
        box_width = max(np.int64(1), np.int64(np.floor(height * numbers.ratio_high + 0.5)))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width, flip


@compiled()
def _clean_box(height: np.int64, width: np.int64, center_crop_ratio: float) -> Box:
    short: np.int64 = min(height, width)
    if short <= MAX_SMALL_IMAGE_SIZE:
        return np.int64(0), np.int64(0), height, width, np.int64(0)
    side = np.int64(short * center_crop_ratio)
    return (height - side) // 2, (width - side) // 2, side, side, np.int64(0)
