"""Compiled functions that render views of a stored image: the pixel definition `pillow`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kdcache.compiled import compiled
from kdcache.data.jpeg_library import RGB_FORMAT
from kdcache.data.views import Placement
from kdcache.reader.intrinsics import call_c
from kdcache.reader.jpeg import cut_rows, has_size
from kdcache.reader.resize import ResizeScratch, resize_box

U8 = npt.NDArray[np.uint8]

SCALES = (1, 2, 4, 8)
"""Denominators of the scales at which libjpeg-turbo decodes; this costs less than to decode the
whole image and shrink it."""


WRONG_SIZE = 1
"""Status of a JPEG whose header states another size than the beton's table."""


@compiled(nogil=True)
def render_jpeg(
    content: U8,
    height: int,
    width: int,
    placements: npt.NDArray[np.int64],
    is_scaled: bool,
    decoder: int,
    functions: npt.NDArray[np.int64],
    decoded: U8,
    padded: U8,
    cut: U8,
    scratch: ResizeScratch,
    outputs: U8,
) -> int:
    """Decode a JPEG once for each scale among its views, and render every view.

    Args:
        content: a complete JPEG.
        height: height of the image in pixels.
        width: width of the image in pixels.
        placements: (V, 10) a Placement per view.
        is_scaled: large boxes are decoded at a smaller scale.
        decoder: address of a decoder of this thread.
        functions: addresses of tjDecompress2 and tjDecompressToYUVPlanes.
        decoded: scratch for pixels.
        padded: scratch for a padded box.
        cut: scratch for a part of the file.
        scratch: for resizing.
        outputs: (V, S, S, 3), written completely.

    Returns:
        0, `WRONG_SIZE`, or the last error status of libjpeg-turbo. After an error the output may
        hold anything.
    """
    if not has_size(content, height, width):
        return WRONG_SIZE
    status = 0
    size = outputs.shape[1]
    for scale in SCALES:
        if not has_scale(placements, height, width, scale, is_scaled):
            continue
        length, first, held = find_rows(
            content, height, width, placements, size, scale, is_scaled, cut
        )
        rows, columns = (held + scale - 1) // scale, (width + scale - 1) // scale
        file = cut[:length] if length else content
        status |= decode_rgb(file, rows, columns, decoder, functions, decoded)
        image = decoded[: 3 * rows * columns].reshape(rows, columns, 3)
        for v in range(len(placements)):
            place = placement(placements[v])
            if scale_of(place, height, width, is_scaled) == scale:
                inside = is_inside(place, height, width)
                here = scaled(place, first, scale)
                render(image, inside, here, padded, scratch, outputs[v])
    return status


@compiled(nogil=True)
def decode_rgb(
    content: U8,
    height: int,
    width: int,
    decoder: int,
    functions: npt.NDArray[np.int64],
    decoded: U8,
) -> int:
    """Decode a JPEG to RGB.

    Args:
        content: a complete JPEG.
        height: height of the result; the JPEG's own, or 1/2, 1/4 or 1/8 of it, rounded up.
        width: width of the result.
        decoder: address of a decoder of this thread.
        functions: addresses of tjDecompress2 and tjDecompressToYUVPlanes.
        decoded: at least height * width * 3 bytes, written.

    Returns:
        0, or the status of libjpeg-turbo.
    """
    return call_c(
        functions[0],
        (
            decoder,
            np.int64(content.ctypes.data),
            np.int64(len(content)),
            np.int64(decoded.ctypes.data),
            np.int64(width),
            np.int64(3 * width),
            np.int64(height),
            np.int64(RGB_FORMAT),
            np.int64(0),  # no flags: the exact transform and smooth chroma, as Pillow decodes
        ),
    )


@compiled(nogil=True)
def has_scale(
    placements: npt.NDArray[np.int64], height: int, width: int, scale: int, is_scaled: bool
) -> bool:
    """Return whether any of the views is decoded at a scale."""
    for v in range(len(placements)):
        if scale_of(placement(placements[v]), height, width, is_scaled) == scale:
            return True
    return False


@compiled(nogil=True)
def find_rows(
    content: U8,
    height: int,
    width: int,
    placements: npt.NDArray[np.int64],
    size: int,
    scale: int,
    is_scaled: bool,
    cut: U8,
) -> tuple[int, int, int]:
    """Cut the rows that the views of one scale need out of a JPEG.

    Args:
        content: a complete JPEG.
        height: height of the image in pixels.
        width: width of the image in pixels.
        placements: (V, 10) a Placement per view.
        size: side of the window in pixels.
        scale: of the views.
        is_scaled: large boxes are decoded at a smaller scale.
        cut: written.

    Returns:
        (bytes written, first row, number of rows). There are 0 bytes, and all rows, if the complete
        file must be decoded.
    """
    first, end = height, 0
    for v in range(len(placements)):
        place = placement(placements[v])
        if scale_of(place, height, width, is_scaled) == scale:
            top, bottom = rows_needed(place, size, scale)
            first, end = min(first, max(top, 0)), max(end, min(bottom, height))
    if first >= end:  # all boxes lie above or below the image
        first, end = 0, 1
    length, first, held = cut_rows(content, first, end, cut)
    if length == 0:
        return 0, 0, height
    return length, first, held


@compiled(nogil=True)
def render_raw(
    image: U8,
    placements: npt.NDArray[np.int64],
    padded: U8,
    scratch: ResizeScratch,
    outputs: U8,
) -> None:
    """Render every view of an image that is stored as pixels.

    Args:
        image: (height, width, 3) RGB.
        placements: (V, 10) a Placement per view.
        padded: scratch for a padded box.
        scratch: for resizing.
        outputs: (V, S, S, 3), written completely.
    """
    for v in range(len(placements)):
        place = placement(placements[v])
        inside = is_inside(place, image.shape[0], image.shape[1])
        render(image, inside, place, padded, scratch, outputs[v])


@compiled(nogil=True)
def placement(numbers: npt.NDArray[np.int64]) -> Placement:
    """Return a placement from its (10,) numbers."""
    return Placement(
        numbers[0],
        numbers[1],
        numbers[2],
        numbers[3],
        numbers[4],
        numbers[5],
        numbers[6],
        numbers[7],
        numbers[8],
        numbers[9],
    )


@compiled(nogil=True)
def is_inside(place: Placement, height: int, width: int) -> bool:
    """Return whether a box lies inside the image, so that it has no padding."""
    return (
        place.top >= 0
        and place.left >= 0
        and place.top + place.height <= height
        and place.left + place.width <= width
    )


@compiled(nogil=True)
def scale_of(place: Placement, height: int, width: int, is_scaled: bool) -> int:
    """Return the scale at which a view is decoded."""
    return choose_scale(place, height, width) if is_scaled else 1


@compiled(nogil=True)
def choose_scale(place: Placement, height: int, width: int) -> int:
    """Return the largest scale at which a box is not smaller than its resized form.

    It is 1 for a box with padding. It depends only on the placement and the sizes, so a view's
    pixels do not depend on other views.
    """
    scale = 1
    if not is_inside(place, height, width):
        return scale
    while (
        scale < SCALES[-1]
        and place.height >= 2 * scale * place.resized_height
        and place.width >= 2 * scale * place.resized_width
    ):
        scale *= 2
    return scale


@compiled(nogil=True)
def rows_needed(place: Placement, size: int, scale: int) -> tuple[int, int]:
    """Return the first row, and one past the last, that a view needs; a few more do no harm.

    Args:
        place: in pixels of the stored image.
        size: side of the window.
        scale: at which the image is decoded.
    """
    zoom = place.height / place.resized_height
    # A chroma sample is 2 pixels high, and a pixel at 1 / scale has `scale` rows.
    support = (2 if place.is_bicubic else 1) * max(zoom, 2.0) + 2 * scale
    first = place.top + int(np.floor(place.window_top * zoom - support))
    end = place.top + int(np.ceil((place.window_top + size) * zoom + support))
    return max(first, place.top), min(end, place.top + place.height)


@compiled(nogil=True)
def scaled(place: Placement, first: int, scale: int) -> Placement:
    """Return a placement in pixels of the decoded image.

    Args:
        place: in pixels of the stored image.
        first: row of the stored image where the decoded one begins, a multiple of the scale.
        scale: the decoded image has 1 / scale of the size.
    """
    # Round each edge to the nearest pixel, so that scaling does not move the box.
    half = scale // 2
    top, left = (place.top - first + half) // scale, (place.left + half) // scale
    height = (place.top - first + place.height + half) // scale - top
    width = (place.left + place.width + half) // scale - left
    return Placement(
        top,
        left,
        height,
        width,
        place.flip,
        place.resized_height,
        place.resized_width,
        place.window_top,
        place.window_left,
        place.is_bicubic,
    )


@compiled(nogil=True)
def render(
    image: U8,
    inside: bool,
    place: Placement,
    padded: U8,
    scratch: ResizeScratch,
    output: U8,
) -> None:
    """Cut a box out of an image, resize it, keep the window, mirror it.

    Args:
        image: (rows, columns, 3), the decoded rows.
        inside: whether the box lies inside the stored image. Rows that the window does not need may
            still be missing from `image`.
        place: in pixels of `image`.
        padded: scratch for a box with padding.
        scratch: for resizing.
        output: (S, S, 3), written completely.
    """
    top, left, rows, columns = place.top, place.left, place.height, place.width
    zero = int(np.int64(0))  # numba would compile again for each constant
    if rows == place.resized_height and columns == place.resized_width:
        copy_box(image, top + place.window_top, left + place.window_left, place.flip, output)
        return
    if not inside:
        window = padded[: 3 * rows * columns].reshape(rows, columns, 3)
        copy_box(image, top, left, zero, window)
        image, top, left = window, zero, zero
    resize_box(
        image,
        (np.float64(top), np.float64(top + rows)),
        (np.float64(left), np.float64(left + columns)),
        (place.resized_height, place.resized_width),
        (place.window_top, place.window_left),
        place.is_bicubic != 0,
        place.flip,
        scratch,
        output,
    )


@compiled(nogil=True)
def copy_box(image: U8, top: int, left: int, flip: int, output: U8) -> None:
    """Copy a box of the output's size, with zeros outside the image.

    Args:
        image: (height, width, 3).
        top: first row of the box, may be negative.
        left: first column of the box, may be negative.
        flip: 1 to mirror left and right.
        output: (box height, box width, 3), written completely.
    """
    height, width = image.shape[0], image.shape[1]
    rows, columns = output.shape[0], output.shape[1]
    first_row, end_row = max(0, -top), min(rows, height - top)
    first, end = max(0, -left), min(columns, width - left)
    if first_row > 0 or end_row < rows or first > 0 or end < columns:
        output[:] = 0
    for row in range(first_row, end_row):
        for column in range(first, end):
            target = columns - 1 - column if flip else column
            for channel in range(3):
                output[row, target, channel] = image[row + top, column + left, channel]
