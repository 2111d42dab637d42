"""Resize a box of an image as Pillow does, bit for bit.

Pillow resizes 8-bit images in two passes, columns first, with whole levels between them. Each level
is a weighted sum of a few source pixels. The weights are computed in double precision and rounded
to 22 fractional bits, so the sums are integer arithmetic and equal everywhere.

The columns pass works on tiles: a few rows, stored column by column, so that one vector holds the
same column of all rows. Both passes are then the same sum over vectors (`intrinsics.weighted_sum`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kdcache.compiled import compiled
from kdcache.reader.intrinsics import (
    LANES,
    WEIGHT_BITS,
    copy_1,
    copy_4,
    weighted_sum,
    weighted_sum_clipped,
)

U8 = npt.NDArray[np.uint8]

_ONE = np.float64(1 << WEIGHT_BITS)


class ResizeScratch(NamedTuple):
    """Memory that one thread resizes with; see `resize_scratch`."""

    starts: npt.NDArray[np.int64]
    """(2, S): first source column, and first source row, of each output column and row."""
    weights: npt.NDArray[np.int32]
    """(2, S, taps)."""
    tiles: U8
    """(2, bytes): a tile of the source, and of the output."""
    narrow: U8
    """(bytes,) rows after the columns pass, and the end of one output row."""


def max_taps(side: int, image_size: int) -> int:
    """Return the maximum number of source pixels per output pixel, of either filter.

    Args:
        side: maximum side of the source in pixels.
        image_size: side of the output in pixels.
    """
    return 4 * -(-side // image_size) + 5


def resize_scratch(
    workers: int, height: int, width: int, image_size: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], U8, U8]:
    """Return the arrays of `ResizeScratch` for several workers; their first axis is the worker.

    Args:
        workers: number of workers.
        height: maximum height of a source in pixels.
        width: maximum width of a source in pixels.
        image_size: side of the output in pixels.
    """
    taps = max_taps(max(height, width), image_size)
    return (
        np.empty((workers, 2, image_size), dtype=np.int64),
        np.empty((workers, 2, image_size, taps), dtype=np.int32),
        np.empty((workers, 2, LANES * (max(width, image_size) + 1)), dtype=np.uint8),
        np.empty((workers, (height + 1) * (3 * image_size + LANES)), dtype=np.uint8),
    )


@compiled(nogil=True)
def filter_weights(
    begin: float,
    end: float,
    size: int,
    resized: int,
    first: int,
    is_bicubic: bool,
    starts: npt.NDArray[np.int64],
    weights: npt.NDArray[np.int32],
) -> int:
    """Compute which source pixels an output pixel is made of, along one axis.

    Args:
        begin: where the box begins, in pixels of the source; its pixel i covers [i, i + 1).
        end: where the box ends.
        size: number of pixels of the source.
        resized: number of pixels that the box is resized to.
        first: first of these that is wanted.
        is_bicubic: the filter is Pillow's bicubic one; otherwise its bilinear one (a triangle).
        starts: (n,) first source pixel of each wanted output pixel, written.
        weights: (n, at least the number of taps) written; 0 beyond an output pixel's own.

    Returns:
        The number of taps: every output pixel is a sum of as many source pixels, all of them
        inside the source.
    """
    scale = (end - begin) / resized
    stretch = max(scale, 1.0)
    support = (2.0 if is_bicubic else 1.0) * stretch
    inverse = 1.0 / stretch
    exact = np.empty(int(np.ceil(support)) * 2 + 1)
    taps = 1
    for i in range(len(starts)):
        center = begin + (first + i + 0.5) * scale
        low = max(int(center - support + 0.5), 0)
        high = min(int(center + support + 0.5), size)
        total = 0.0
        for pixel in range(low, high):
            distance = abs((pixel - center + 0.5) * inverse)
            weight = _bicubic(distance) if is_bicubic else max(1.0 - distance, 0.0)
            exact[pixel - low] = weight
            total += weight
        # Weights of 0 at either side are left out.
        count = skipped = 0
        for pixel in range(low, high):
            scaled = exact[pixel - low] / total * _ONE
            weight = int(scaled + 0.5) if scaled >= 0 else int(scaled - 0.5)
            if count == 0 and weight == 0:
                skipped += 1
                continue
            weights[i, count] = weight
            count += 1
        while count > 1 and weights[i, count - 1] == 0:
            count -= 1
        weights[i, count:] = 0
        starts[i] = low + skipped
        taps = max(taps, count)
    for i in range(len(starts)):
        beyond = starts[i] + taps - size
        if beyond > 0:
            for tap in range(taps - 1, -1, -1):
                weights[i, tap] = weights[i, tap - beyond] if tap >= beyond else 0
            starts[i] -= beyond
    return taps


@compiled(nogil=True)
def _bicubic(distance: float) -> float:
    """Return the value of Keys' cubic with a = -0.5, which Pillow calls bicubic."""
    if distance < 1:
        return (1.5 * distance - 2.5) * distance * distance + 1
    if distance < 2:  # noqa: PLR2004
        return (((distance - 5) * distance + 8) * distance - 4) * -0.5
    return 0.0


@compiled(nogil=True)
def resize_box(
    image: U8,
    rows: tuple[float, float],
    columns: tuple[float, float],
    resized: tuple[int, int],
    window: tuple[int, int],
    is_bicubic: bool,
    flip: int,
    scratch: ResizeScratch,
    output: U8,
) -> None:
    """Resize a box inside an image, and keep a window of the result.

    Args:
        image: (height, width, channels), C order; 1 or 3 channels.
        rows: begin and end of the box in rows. If they are not whole, the source is the smallest
            box of whole pixels around it, as with Pillow's argument `box`.
        columns: begin and end of the box in columns.
        resized: rows and columns that the box is resized to.
        window: first row and first column of the window.
        is_bicubic: the filter is bicubic; otherwise bilinear.
        flip: 1 to mirror left and right.
        scratch: of this thread.
        output: (S, S, channels), written completely.
    """
    channels = image.shape[2]
    side = output.shape[0]
    top, left = int(np.floor(rows[0])), int(np.floor(columns[0]))
    height = int(np.ceil(rows[1])) - top
    width = int(np.ceil(columns[1])) - left
    column_starts, row_starts = scratch.starts[0], scratch.starts[1]
    column_weights, row_weights = scratch.weights[0], scratch.weights[1]
    column_taps = filter_weights(
        columns[0] - left,
        columns[1] - left,
        width,
        resized[1],
        window[1],
        is_bicubic,
        column_starts,
        column_weights,
    )
    row_taps = filter_weights(
        rows[0] - top,
        rows[1] - top,
        height,
        resized[0],
        window[0],
        is_bicubic,
        row_starts,
        row_weights,
    )
    # The first start need not be the least, because weights of 0 are left out.
    first_row, end_row = row_starts.min(), row_starts.max() + row_taps
    first_column, end_column = column_starts.min(), column_starts.max() + column_taps
    pitch = image.shape[1] * channels
    source = image.ctypes.data + (top + first_row) * pitch + (left + first_column) * channels
    narrow_pitch = side * channels + LANES
    narrow = scratch.narrow.ctypes.data
    _narrow_rows(
        source,
        pitch,
        end_row - first_row,
        end_column - first_column,
        channels,
        first_column,
        column_starts,
        column_weights,
        column_taps,
        is_bicubic,
        flip,
        scratch.tiles,
        narrow,
        narrow_pitch,
    )
    length = side * channels
    whole = length - length % LANES
    spare = narrow + (end_row - first_row) * narrow_pitch
    for row in range(side):
        read = narrow + (row_starts[row] - first_row) * narrow_pitch
        weights = row_weights[row].ctypes.data
        written = output[row].ctypes.data
        for offset in range(0, whole, LANES):
            _add_up(read + offset, narrow_pitch, weights, row_taps, written + offset, is_bicubic)
        if whole < length:
            _add_up(read + whole, narrow_pitch, weights, row_taps, spare, is_bicubic)
            for offset in range(whole, length):
                copy_1(spare + offset - whole, written + offset)


@compiled(nogil=True)
def _narrow_rows(
    source: int,
    pitch: int,
    rows: int,
    columns: int,
    channels: int,
    first_column: int,
    starts: npt.NDArray[np.int64],
    weights: npt.NDArray[np.int32],
    taps: int,
    is_bicubic: bool,
    flip: int,
    tiles: U8,
    narrow: int,
    narrow_pitch: int,
) -> None:
    """Resize the columns of each row.

    Args:
        source: address of the first pixel that is needed.
        pitch: bytes between two source rows.
        rows: number of rows.
        columns: number of source columns that are needed.
        channels: 1 or 3.
        first_column: number of the first needed column, in the box of `starts`.
        starts: (S,) first source column per output column.
        weights: (S, at least `taps`).
        taps: source columns per output column.
        is_bicubic: whether weights may be negative.
        flip: 1 to mirror left and right.
        tiles: (2, bytes) scratch.
        narrow: address of the output.
        narrow_pitch: bytes between two output rows.
    """
    side = len(starts)
    # One column of a tile has `LANES` bytes: 8 rows of 4 bytes (RGB and one unused), or 32 rows.
    lane_bytes = 4 if channels > 1 else 1
    tile, result = tiles[0].ctypes.data, tiles[1].ctypes.data
    for first in range(0, rows, LANES // lane_bytes):
        count = min(LANES // lane_bytes, rows - first)
        for row in range(count):
            read = source + (first + row) * pitch
            written = tile + row * lane_bytes
            if channels == 1:
                for _ in range(columns):
                    copy_1(read, written)
                    read += 1
                    written += LANES
                continue
            for _ in range(columns - 1):
                copy_4(read, written)
                read += 3
                written += LANES
            for channel in range(3):  # the fourth byte may lie outside the image
                copy_1(read + channel, written + channel)
        for column in range(side):
            read = tile + (starts[column] - first_column) * LANES
            target = side - 1 - column if flip else column
            address = weights[column].ctypes.data
            _add_up(read, LANES, address, taps, result + target * LANES, is_bicubic)
        for row in range(count):
            read = result + row * lane_bytes
            written = narrow + (first + row) * narrow_pitch
            for _ in range(side):
                if channels == 1:
                    copy_1(read, written)
                else:
                    copy_4(read, written)  # the fourth byte is overwritten, or in the gap
                read += LANES
                written += channels


@compiled(nogil=True, inline="always")
def _add_up(
    source: int, step: int, weights: int, taps: int, destination: int, is_bicubic: bool
) -> None:
    if is_bicubic:
        weighted_sum_clipped(source, step, weights, taps, destination)
    else:
        weighted_sum(source, step, weights, taps, destination)
