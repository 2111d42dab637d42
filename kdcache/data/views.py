"""Compute a view's box and flip from (seed, view number, view key).

View 0 is the clean view. Views from 1 follow the policy. The teacher pass and the student's loader
evaluate the same function inside the decoder. So only seed and policy are stored, and the student
sees exactly the pixels that the teacher saw.

The view key is a part of the digest of the image's decoded pixels (`kdcache.data.digests`). So an
image has the same views in any order, packing or part of a data set.

A view is a box in the stored image and a flip: (top, left, height, width, flip). The box is cut
out, with zeros outside the image, resized to the image size, and then mirrored if `flip` is 1.
`kdcache.data.photometric_parameters` defines the changes of pixels that follow.

The clean view of an image above 64 px is torchvision's Resize and CenterCrop: the box is the whole
image, and the view is the window in the centre of the resized image. `place_view` has both cases.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kdcache.compiled import compiled
from kdcache.data.beton_manifest import BetonManifest
from kdcache.data.philox import below, log_uniform, philox, uniform
from kdcache.data.policy import (
    CENTER_CROP_RATIO,
    CLEAN,
    DEFAULT_DECODE,
    DEFAULT_DEFINITION,
    MAX_SMALL_IMAGE_SIZE,
    PAD_CROP,
    DecodeMode,
    Filter,
    PixelDefinition,
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
    """Side of the clean view above 64 px, as a fraction of the resized image's short side."""
    clean_filter: Filter = "bilinear"
    """The filter that resizes the clean view. (The policy has that of the other views.)"""
    definition: PixelDefinition = DEFAULT_DEFINITION
    decode: DecodeMode = DEFAULT_DECODE

    @property
    def resize_size(self) -> int:
        """Short side of the resized image whose centre is the clean view, in pixels.

        It is the size that torchvision's `Resize` is given.
        """
        # The ratio of 224 and 232 must give 232 again, although division rounds.
        return math.floor(self.image_size / self.center_crop_ratio + 1e-6)

    def placement_numbers(self) -> PlacementNumbers:
        """Return what `place_view` needs besides the policy."""
        is_bicubic = (self.policy.filter == "bicubic", self.clean_filter == "bicubic")
        return PlacementNumbers(self.image_size, self.resize_size, *map(int, is_bicubic))


class PlacementNumbers(NamedTuple):
    """The sizes and filters of views, for compiled code."""

    image_size: int
    resize_size: int
    is_bicubic: int
    """1 if the policy's views are resized with the bicubic filter."""
    is_clean_bicubic: int
    """1 if the clean view is."""


class Placement(NamedTuple):
    """Where a view's pixels come from: box, flip, and a window of the resized box."""

    top: int
    left: int
    height: int
    width: int
    """The box in the stored image, in pixels."""
    flip: int
    """1 to mirror left and right, after all else."""
    resized_height: int
    resized_width: int
    """The size to which the box is resized."""
    window_top: int
    window_left: int
    """First row and column of the window, which has the image size."""
    is_bicubic: int
    """1 to resize with the bicubic filter, 0 with the bilinear one."""


def default_views(
    data: BetonManifest,
    *,
    policy: str | None = None,
    seed: int = 0,
    image_size: int | None = None,
    definition: PixelDefinition | None = None,
    decode: DecodeMode | None = None,
) -> Views:
    """Return the views of a data set, with the manifest's policy and image size as defaults."""
    return Views(
        Policy.parse(policy or data.policy),
        seed,
        image_size or data.image_size,
        definition=definition or DEFAULT_DEFINITION,
        decode=decode or DEFAULT_DECODE,
    )


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
        left is negative, or the box ends outside the image. For the clean view of an image above
        64 px it is the square that the view shows, rounded to whole pixels.
    """
    if isinstance(policy, str):
        policy = Policy.parse(policy)
    keys = validate_view_keys(view_keys)
    shape = np.broadcast_to(np.asarray(sizes, dtype=np.int64), (len(keys), 2))
    boxes = np.empty((len(keys), 5), dtype=np.int32)
    numbers = policy.numbers(center_crop_ratio)
    _fill(numbers, validate_seed(seed), validate_view(view), keys, shape, boxes)
    return boxes


def view_placements(
    views: Views, view: int, view_keys: npt.ArrayLike, sizes: npt.ArrayLike
) -> npt.NDArray[np.int64]:
    """Return where the pixels of one view come from, for every sample.

    Args:
        views: policy, seed and image size.
        view: view number; 0 is the clean view.
        view_keys: (n,) integers >= 0.
        sizes: (n, 2) height and width of the stored images, or one (height, width) for all.

    Returns:
        (n, 10) int64: the fields of `Placement`.
    """
    keys = validate_view_keys(view_keys)
    shape = np.broadcast_to(np.asarray(sizes, dtype=np.int64), (len(keys), 2))
    placements = np.empty((len(keys), len(Placement._fields)), dtype=np.int64)
    numbers = views.policy.numbers(views.center_crop_ratio)
    seed, number = validate_seed(views.seed), validate_view(view)
    _place(numbers, views.placement_numbers(), seed, number, keys, shape, placements)
    return placements


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
def _place(
    numbers: PolicyNumbers,
    sizes: PlacementNumbers,
    seed: np.uint64,
    view: np.uint64,
    view_keys: npt.NDArray[np.uint64],
    shapes: npt.NDArray[np.int64],
    placements: npt.NDArray[np.int64],
) -> None:
    for i in range(len(view_keys)):
        shape = shapes[i]
        place = place_view(numbers, sizes, seed, view, view_keys[i], shape[0], shape[1])
        for j in range(len(place)):
            placements[i, j] = place[j]


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


@compiled()
def place_view(
    numbers: PolicyNumbers,
    sizes: PlacementNumbers,
    seed: np.uint64,
    view: np.uint64,
    view_key: np.uint64,
    height: np.int64,
    width: np.int64,
) -> Placement:
    """Return where the pixels of one view come from, as int64.

    Args:
        numbers: a PolicyNumbers.
        sizes: a PlacementNumbers of int64.
        seed: uint64.
        view: uint64.
        view_key: uint64.
        height: int64, of the stored image.
        width: int64, of the stored image.
    """
    size = sizes.image_size
    is_clean = view == 0 or numbers.kind == CLEAN
    is_bicubic = sizes.is_clean_bicubic if is_clean else sizes.is_bicubic
    rows, columns, nothing = int(height), int(width), int(np.int64(0))
    if is_clean and min(rows, columns) > MAX_SMALL_IMAGE_SIZE:
        # Resize makes the short side `resize_size`, and rounds the long side down.
        target = sizes.resize_size
        resized_height = int(target * rows / columns) if rows > columns else target
        resized_width = int(target * columns / rows) if columns > rows else target
        return Placement(
            nothing,
            nothing,
            rows,
            columns,
            nothing,
            resized_height,
            resized_width,
            _half(resized_height - size),
            _half(resized_width - size),
            is_bicubic,
        )
    box = view_box(numbers, seed, view, view_key, height, width)
    return Placement(
        int(box[0]),
        int(box[1]),
        int(box[2]),
        int(box[3]),
        int(box[4]),
        size,
        size,
        nothing,
        nothing,
        is_bicubic,
    )


@compiled()
def _half(number: int) -> int:
    """Return half of a number >= 0; a half is rounded to the even number, as torchvision does."""
    half = number // 2
    return half + (number & half & 1)
