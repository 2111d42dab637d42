"""Decode an image to planes: luma, and two chroma planes of half its height and width.

This is the pixel definition `planes`. A JPEG gives its own planes; chroma of a higher resolution is
averaged down to half of luma's. Other images are converted first, with the integer arithmetic of
libjpeg (JFIF), and so are JPEGs in RGB or with chroma of less than half the resolution.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kdcache.compiled import compiled
from kdcache.reader.intrinsics import LANES, call_c, mean_of_squares, rgb_of_planes
from kdcache.reader.jpeg import sampling_factors
from kdcache.reader.render import decode_rgb
from kdcache.reader.resize import ResizeScratch, resize_box

U8 = npt.NDArray[np.uint8]

NEUTRAL = 128
"""The chroma of grey."""

_MARGIN = 8
"""Pixels by which a decoded plane may be larger than the image."""


def planes_bytes(height: int, width: int) -> int:
    """Return the scratch memory that decoding an image to planes needs, in bytes."""
    return 6 * (height + _MARGIN) * (width + _MARGIN)


@compiled(nogil=True)
def decode_planes(
    content: U8,
    rows: int,
    columns: int,
    scale: int,
    decoder: int,
    functions: npt.NDArray[np.int64],
    table: npt.NDArray[np.int64],
    decoded: U8,
) -> tuple[int, int, int, int]:
    """Decode a JPEG to planes.

    Args:
        content: a complete JPEG.
        rows: its height in pixels.
        columns: its width in pixels.
        scale: 1, 2, 4 or 8: the planes have 1 / scale of the size, rounded up.
        decoder: address of a decoder of this thread.
        functions: addresses of tjDecompress2 and tjDecompressToYUVPlanes.
        table: (8,) scratch.
        decoded: scratch of `planes_bytes`, written: luma from offset 0, then chroma.

    Returns:
        (status, bytes per row of luma, offset of the first chroma plane, offset of the second).
        Chroma planes have (width + 1) // 2 bytes per row. A status other than 0 is an error of
        libjpeg-turbo.
    """
    height, width = (rows + scale - 1) // scale, (columns + scale - 1) // scale
    components, horizontal, vertical = sampling_factors(content)
    if components == 0:
        # Components with factors of their own: decode to RGB behind the planes, and convert.
        start = np.int64(3) * (height + _MARGIN) * (width + _MARGIN)
        status = decode_rgb(content, height, width, decoder, functions, decoded[start:])
        rgb = decoded[start : start + 3 * height * width].reshape(height, width, 3)
        first, second = planes_of_rgb(rgb, decoded)
        return status, width, first, second
    # TurboJPEG rounds the sides of luma up to whole chroma samples.
    pitch = (width + horizontal - 1) // horizontal * horizontal
    lines = (height + vertical - 1) // vertical * vertical
    chroma_pitch = pitch // horizontal
    chroma_bytes = chroma_pitch * (lines // vertical)
    first = pitch * lines
    second = first + chroma_bytes
    address = np.int64(decoded.ctypes.data)
    table[0] = address
    table[1] = address + first
    table[2] = address + second
    strides = table[3:6].view(np.int32)
    strides[0] = pitch
    strides[1] = chroma_pitch
    strides[2] = chroma_pitch
    status = call_c(
        functions[1],
        (
            decoder,
            np.int64(content.ctypes.data),
            np.int64(len(content)),
            np.int64(table.ctypes.data),
            np.int64(width),
            np.int64(strides.ctypes.data),
            np.int64(height),
            np.int64(0),
        ),
    )
    half_height, half_width = (height + 1) // 2, (width + 1) // 2
    if components == 1:
        first, second = pitch * lines, pitch * lines + half_height * half_width
        decoded[first : second + half_height * half_width] = NEUTRAL
    elif horizontal != 2 or vertical != 2:  # noqa: PLR2004
        for offset in (first, second):
            halve(decoded[offset:], chroma_pitch, horizontal, vertical, height, width)
    elif chroma_pitch != half_width:
        for offset in (first, second):
            for row in range(1, half_height):
                for column in range(half_width):
                    decoded[offset + row * half_width + column] = decoded[
                        offset + row * chroma_pitch + column
                    ]
    return status, pitch, first, second


@compiled(nogil=True)
def halve(chroma: U8, pitch: int, horizontal: int, vertical: int, height: int, width: int) -> None:
    """Average a chroma plane to half the height and width of luma, in place.

    Each result is the mean of the chroma of 2 x 2 pixels, rounded to the nearest level, halves up.

    Args:
        chroma: the plane from its first byte; the result begins there as well.
        pitch: bytes per row of the plane.
        horizontal: pixels per chroma sample in a row, 1 or 2.
        vertical: pixels per chroma sample in a column, 1 or 2.
        height: height of the image.
        width: width of the image.
    """
    half_width = (width + 1) // 2
    address = np.int64(chroma.ctypes.data)
    # Columns whose squares lie inside the image; a vector reads twice as far as it writes.
    whole = (width // 2) // LANES * LANES if horizontal == 1 else 0
    for row in range((height + 1) // 2):
        upper = (2 * row >> (vertical - 1)) * pitch
        lower = (min(2 * row + 1, height - 1) >> (vertical - 1)) * pitch
        written = row * half_width
        for column in range(0, whole, LANES):
            mean_of_squares(
                address + upper + 2 * column,
                address + lower + 2 * column,
                address + written + column,
            )
        for column in range(whole, half_width):
            left = 2 * column >> (horizontal - 1)
            right = min(2 * column + 1, width - 1) >> (horizontal - 1)
            total = np.int64(chroma[upper + left]) + chroma[upper + right]
            total += np.int64(chroma[lower + left]) + chroma[lower + right]
            chroma[written + column] = (total + 2) >> 2


@compiled(nogil=True)
def planes_of_rgb(rgb: U8, planes: U8) -> tuple[int, int]:
    """Convert RGB to planes, with libjpeg's integers.

    Args:
        rgb: (height, width, 3).
        planes: written: luma (height, width), then the chroma planes of half the size. Bytes behind
            them, up to 3 * height * width, are scratch.

    Returns:
        The offsets of the two chroma planes.
    """
    height, width = rgb.shape[0], rgb.shape[1]
    count = height * width
    for row in range(height):
        for column in range(width):
            red = np.int64(rgb[row, column, 0])
            green = np.int64(rgb[row, column, 1])
            blue = np.int64(rgb[row, column, 2])
            at = row * width + column
            planes[at] = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
            planes[count + at] = (
                -11059 * red - 21709 * green + 32768 * blue + (NEUTRAL << 16) + 32767
            ) >> 16
            planes[2 * count + at] = (
                32768 * red - 27439 * green - 5329 * blue + (NEUTRAL << 16) + 32767
            ) >> 16
    halve(planes[count:], width, 1, 1, height, width)
    halve(planes[2 * count :], width, 1, 1, height, width)
    return count, 2 * count


@compiled(nogil=True)
def resize_planes(
    planes: U8,
    pitch: int,
    offsets: tuple[int, int],
    height: int,
    width: int,
    box: tuple[int, int, int, int],
    resized: tuple[int, int],
    window: tuple[int, int],
    is_bicubic: bool,
    flip: int,
    scratch: ResizeScratch,
    resized_planes: U8,
    output: U8,
) -> None:
    """Resize a box of an image's planes and convert it to RGB.

    Args:
        planes: the planes' memory, with luma from offset 0.
        pitch: bytes per row of luma.
        offsets: of the chroma planes.
        height: height of the image.
        width: width of the image.
        box: first row, first column, rows, columns, inside the image.
        resized: see `resize_box`.
        window: see `resize_box`.
        is_bicubic: see `resize_box`.
        flip: see `resize_box`.
        scratch: of this thread.
        resized_planes: (3, S, S, 1) scratch.
        output: (S, S, 3), written completely.
    """
    top, left, rows, columns = box
    for plane in range(3):
        start, lines, bytes_per_row, pixels_per_sample = int(np.int64(0)), height, pitch, 1
        if plane > 0:
            start, lines, bytes_per_row = offsets[plane - 1], (height + 1) // 2, (width + 1) // 2
            pixels_per_sample = 2
        resize_box(
            planes[start : start + lines * bytes_per_row].reshape(lines, bytes_per_row, 1),
            (top / pixels_per_sample, (top + rows) / pixels_per_sample),
            (left / pixels_per_sample, (left + columns) / pixels_per_sample),
            resized,
            window,
            is_bicubic,
            flip,
            scratch,
            resized_planes[plane],
        )
    convert_to_rgb(resized_planes, output)


@compiled(nogil=True)
def convert_to_rgb(planes: U8, output: U8) -> None:
    """Convert planes of one size to RGB, with libjpeg's integers.

    Args:
        planes: (3, height, width, 1) luma, blue and red chroma, C order.
        output: (height, width, 3), C order, written.
    """
    count = output.shape[0] * output.shape[1]
    read, written = np.int64(planes.ctypes.data), np.int64(output.ctypes.data)
    whole = count // LANES * LANES
    for first in range(0, whole, LANES):
        at = read + first
        rgb_of_planes(at, at + count, at + 2 * count, written + 3 * first)
    if whole < count:
        levels = planes.reshape(-1)
        pixels = output.reshape(-1)
        tail = np.empty((4, 3 * LANES), dtype=np.uint8)
        for plane in range(3):
            tail[plane, : count - whole] = levels[plane * count + whole : (plane + 1) * count]
        first_row = np.int64(tail.ctypes.data)
        step = 3 * LANES
        rgb_of_planes(first_row, first_row + step, first_row + 2 * step, first_row + 3 * step)
        pixels[3 * whole :] = tail[3, : 3 * (count - whole)]
