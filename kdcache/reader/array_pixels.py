"""The pixels of a view in array arithmetic: the reader's numbers, for numpy and for torch.

The compiled reader and these functions share the weights of the filters and nothing else. All
arithmetic is in int32, so the results are equal on every device.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from kdcache.data.policy import PixelDefinition
from kdcache.data.views import Placement
from kdcache.reader.intrinsics import WEIGHT_BITS
from kdcache.reader.planes import NEUTRAL
from kdcache.reader.resize import filter_weights, max_taps

Array = Any
"""A numpy array or a torch tensor."""

Edges = tuple[float, float]
"""Where a box begins and ends along one axis, in pixels."""


def render_array(image: Array, place: Placement, size: int, definition: PixelDefinition) -> Array:
    """Return the pixels of a view, as the reader decodes them with `decode="full"`.

    Args:
        image: (height, width, 3) uint8, the decoded stored image.
        place: where the view's pixels come from (`kdcache.data.views.view_placements`).
        size: S, the image size.
        definition: `pillow` or `planes`. (The planes that a JPEG stores are not exactly those of
            its RGB pixels; `render_planes_array` takes planes.)

    Returns:
        (S, S, 3) uint8 of the same kind, on the same device.
    """
    if definition == "planes":
        return render_planes_array(planes_of_rgb_array(image), place, size)
    return _resized_box(image, place, size, pixels_per_sample=1, fill=0)


def render_planes_array(planes: tuple[Array, Array, Array], place: Placement, size: int) -> Array:
    """Return the pixels of a view from an image's planes.

    Args:
        planes: (height, width), and two of (ceil(height / 2), ceil(width / 2)), uint8.
        place: where the view's pixels come from.
        size: S, the image size.

    Returns:
        (S, S, 3) uint8 of the same kind, on the same device.
    """
    luma, blue, red = (
        _resized_box(plane[..., None], place, size, pixels_per_sample=pixels, fill=fill)[..., 0]
        for plane, pixels, fill in zip(planes, (1, 2, 2), (0, NEUTRAL, NEUTRAL), strict=True)
    )
    return rgb_of_planes_array(luma, blue, red)


def planes_of_rgb_array(image: Array) -> tuple[Array, Array, Array]:
    """Convert RGB to planes with libjpeg's integers, and halve the chroma.

    Args:
        image: (height, width, 3) uint8.

    Returns:
        Luma (height, width), and two chroma planes (ceil(height / 2), ceil(width / 2)), uint8.
    """
    xp = array_namespace(image)
    red, green, blue = (xp.astype(image[..., channel], xp.int32) for channel in range(3))
    luma = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    offset = (NEUTRAL << 16) + 32767
    chroma = (
        (-11059 * red - 21709 * green + 32768 * blue + offset) >> 16,
        (32768 * red - 27439 * green - 5329 * blue + offset) >> 16,
    )
    halved = (xp.astype(_halved(plane), xp.uint8) for plane in chroma)
    return (xp.astype(luma, xp.uint8), *halved)


def rgb_of_planes_array(luma: Array, blue: Array, red: Array) -> Array:
    """Convert planes of one size to RGB with libjpeg's integers.

    Args:
        luma: (height, width) uint8.
        blue: (height, width) uint8 chroma.
        red: (height, width) uint8 chroma.

    Returns:
        (height, width, 3) uint8.
    """
    xp = array_namespace(luma)
    luma, blue, red = (xp.astype(plane, xp.int32) for plane in (luma, blue, red))
    blue, red = blue - NEUTRAL, red - NEUTRAL
    levels = (
        luma + ((91881 * red + 32768) >> 16),
        luma + ((-22554 * blue - 46802 * red + 32768) >> 16),
        luma + ((116130 * blue + 32768) >> 16),
    )
    return xp.astype(xp.clip(xp.stack(levels, axis=-1), 0, 255), xp.uint8)


def _halved(chroma: Array) -> Array:
    """Return the means of 2 x 2 pixels; the last row and column count twice where it is odd."""
    height, width = chroma.shape
    lower = [min(row, height - 1) for row in range(1, height + 1, 2)]
    right = [min(column, width - 1) for column in range(1, width + 1, 2)]
    rows = chroma[::2] + chroma[lower]
    return (rows[:, ::2] + rows[:, right] + 2) >> 2


def _resized_box(
    image: Array, place: Placement, size: int, *, pixels_per_sample: int, fill: int
) -> Array:
    """Cut a box out, resize it, keep the window, mirror it.

    Args:
        image: (height, width, channels) uint8.
        place: of the view, in pixels.
        size: S, of the window.
        pixels_per_sample: pixels per row and column of `image`.
        fill: the level outside the image.
    """
    xp = array_namespace(image)
    rows = place.top / pixels_per_sample, (place.top + place.height) / pixels_per_sample
    columns = place.left / pixels_per_sample, (place.left + place.width) / pixels_per_sample
    is_bicubic = bool(place.is_bicubic)
    box = _box_around(image, rows, columns, fill)
    # As in Pillow, columns first, and whole levels in between.
    box = xp.permute_dims(box, (1, 0, 2))
    box = _resized_rows(box, columns, place.resized_width, place.window_left, size, is_bicubic)
    box = xp.permute_dims(box, (1, 0, 2))
    box = _resized_rows(box, rows, place.resized_height, place.window_top, size, is_bicubic)
    return xp.flip(box, axis=1) if place.flip else box


def _box_around(image: Array, rows: Edges, columns: Edges, fill: int) -> Array:
    """Return the smallest box of whole pixels around a box, with one level outside the image."""
    xp = array_namespace(image)
    top, left = int(np.floor(rows[0])), int(np.floor(columns[0]))
    bottom, right = int(np.ceil(rows[1])), int(np.ceil(columns[1]))
    shape = (bottom - top, right - left, image.shape[2])
    box = xp.full(shape, fill, dtype=xp.uint8, device=device(image))
    above, before = max(top, 0), max(left, 0)
    below, behind = min(bottom, image.shape[0]), min(right, image.shape[1])
    if above < below and before < behind:
        inner = image[above:below, before:behind]
        box[above - top : below - top, before - left : behind - left] = inner
    return box


def _resized_rows(
    source: Array, edges: Edges, resized: int, first: int, count: int, is_bicubic: bool
) -> Array:
    """Resize the first axis.

    Args:
        source: (size, ..., channels) uint8.
        edges: of the box; its first whole pixel is `source[0]`.
        resized: size of the box after resizing.
        first: first of the resized pixels that is wanted.
        count: number of wanted pixels.
        is_bicubic: the filter is bicubic; otherwise bilinear.
    """
    xp = array_namespace(source)
    size = source.shape[0]
    starts = np.empty(count, dtype=np.int64)
    weights = np.zeros((count, max_taps(size, resized)), dtype=np.int32)
    begin = edges[0] - np.floor(edges[0])
    end = edges[1] - np.floor(edges[0])
    taps = filter_weights(begin, end, size, resized, first, is_bicubic, starts, weights)
    where = device(source)
    indices, factors = (xp.asarray(array, device=where) for array in (starts, weights))
    total = xp.full(
        (count, *source.shape[1:]), 1 << (WEIGHT_BITS - 1), dtype=xp.int32, device=where
    )
    for tap in range(taps):
        pixels = xp.astype(xp.take(source, indices + tap, axis=0), xp.int32)
        total = total + pixels * factors[:, tap, None, None]
    return xp.astype(xp.clip(total >> WEIGHT_BITS, 0, 255), xp.uint8)
