"""Compiled functions that render boxes of a stored image to final pixels.

FFCV's library does the slow parts: it decodes with libjpeg-turbo and resizes by area with OpenCV.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from kdcache.compiled import compiled
from kdcache.reader.jpeg import cut_rows

U8 = npt.NDArray[np.uint8]

SCALES = (1, 2, 4, 8)
"""Denominators of the scales at which libjpeg-turbo decodes; this costs less than to decode the
whole image and shrink it."""


@intrinsic
def _call_c(typing_context: Any, address: Any, arguments: Any) -> Any:  # noqa: ARG001
    """Call the C function at an address with a tuple of int64; return its int32.

    numba does not cache a function that refers to a C function. It does cache one that receives
    the address, which saves several seconds in each process.
    """
    signature = types.int32(types.uintp, arguments)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:  # noqa: ARG001
        count = len(signature.args[1])
        kind = ir.FunctionType(ir.IntType(32), [ir.IntType(64)] * count)
        function = builder.inttoptr(values[0], kind.as_pointer())
        return builder.call(function, cgutils.unpack_tuple(builder, values[1], count))

    return signature, generate


@compiled(nogil=True)
def render_jpeg(
    content: U8,
    height: int,
    width: int,
    boxes: npt.NDArray[np.int64],
    decoded: U8,
    padded: U8,
    cut: U8,
    imdecode: int,
    resize: int,
    outputs: U8,
) -> int:
    """Decode a JPEG once for each scale among its boxes, and render every view.

    Args:
        content: a complete JPEG.
        height: height of the image in pixels.
        width: width of the image in pixels.
        boxes: (V, 5) top, left, height, width, flip.
        decoded: scratch for pixels.
        padded: scratch for a padded box.
        cut: scratch for a part of the file.
        imdecode: address of FFCV's function.
        resize: address of FFCV's function.
        outputs: (V, S, S, 3), written completely.

    Returns:
        0, or the last error status of libjpeg-turbo.
    """
    status = 0
    for scale in SCALES:
        first, end = height, 0
        for v in range(len(boxes)):
            if choose_scale(boxes[v], height, width, outputs.shape[1]) == scale:
                first = min(first, max(boxes[v, 0], 0))
                end = max(end, min(boxes[v, 0] + boxes[v, 2], height))
        if first >= end:  # no view has this scale, or all boxes lie above or below the image
            for v in range(len(boxes)):
                if choose_scale(boxes[v], height, width, outputs.shape[1]) == scale:
                    outputs[v] = 0
            continue
        length, first, held = cut_rows(content, first, end, cut)
        address, size_bytes = cut.ctypes.data, length
        if length == 0 or first + held > height:  # a damaged JPEG may state a larger size
            first = 0
            held, address, size_bytes = height, content.ctypes.data, len(content)
        rows, columns = (held + scale - 1) // scale, (width + scale - 1) // scale
        # FFCV's order: file, its size, height, width, output, the same size again (no crop), the
        # crop's offset, the scale, no crop by transformation, no mirroring.
        status |= _call_c(
            imdecode,
            (
                np.int64(address),
                np.int64(size_bytes),
                np.int64(held),
                width,
                np.int64(decoded.ctypes.data),
                np.int64(held),
                width,
                np.int64(0),
                np.int64(0),
                np.int64(1),
                np.int64(scale),
                np.int64(0),
                np.int64(0),
            ),
        )
        image = decoded[: 3 * rows * columns].reshape(rows, columns, 3)
        for v in range(len(boxes)):
            if choose_scale(boxes[v], height, width, outputs.shape[1]) == scale:
                render(image, boxes[v], first, scale, padded, resize, outputs[v])
    return status


@compiled(nogil=True)
def _resize(
    function: int, image: U8, top: int, left: int, rows: int, columns: int, output: U8
) -> None:
    """Resize a box inside an image to the output's size, by area (OpenCV's INTER_AREA)."""
    # FFCV's order: unused, image, its size, first and end row, first and end column, output, size.
    _call_c(
        function,
        (
            np.int64(0),
            np.int64(image.ctypes.data),
            np.int64(image.shape[0]),
            np.int64(image.shape[1]),
            np.int64(top),
            np.int64(top + rows),
            np.int64(left),
            np.int64(left + columns),
            np.int64(output.ctypes.data),
            np.int64(output.shape[0]),
            np.int64(output.shape[1]),
        ),
    )


@compiled(nogil=True)
def choose_scale(box: npt.NDArray[np.int64], height: int, width: int, size: int) -> int:
    """Return the largest scale at which a box still has the output's size; 1 if it has padding.

    It depends only on the box and the sizes, so a view's pixels do not depend on other views.
    """
    if box[0] < 0 or box[1] < 0 or box[0] + box[2] > height or box[1] + box[3] > width:
        return 1
    scale = 1
    while scale < SCALES[-1] and min(box[2], box[3]) >= 2 * scale * size:
        scale *= 2
    return scale


@compiled(nogil=True)
def render(
    image: U8,
    box: npt.NDArray[np.int64],
    first: int,
    scale: int,
    padded: U8,
    resize: int,
    output: U8,
) -> None:
    """Cut a box out of an image, resize it, mirror it.

    Args:
        image: (rows, columns, 3) of the stored image from row `first` on, at 1 / scale.
        box: top, left, height, width, flip, in pixels of the stored image.
        first: row of the stored image where `image` begins, a multiple of the scale.
        scale: 1, or one at which the box lies inside.
        padded: scratch for a box with padding.
        resize: address of FFCV's function.
        output: (S, S, 3), written completely.
    """
    # Round each edge to the nearest pixel, so that scaling does not move the box.
    half = scale // 2
    top, left = (box[0] - first + half) // scale, (box[1] + half) // scale
    rows = (box[0] - first + box[2] + half) // scale - top
    columns = (box[1] + box[3] + half) // scale - left
    flip = box[4]
    if rows == output.shape[0] and columns == output.shape[1]:
        copy_box(image, top, left, flip, output)
        return
    is_inside = (
        top >= 0 and left >= 0 and top + rows <= image.shape[0] and left + columns <= image.shape[1]
    )
    if is_inside:
        _resize(resize, image, top, left, rows, columns, output)
    else:
        window = padded[: 3 * rows * columns].reshape(rows, columns, 3)
        copy_box(image, top, left, 0, window)
        _resize(resize, window, 0, 0, rows, columns, output)
    if flip:
        mirror(output)


@compiled(nogil=True)
def copy_box(
    image: U8,
    top: int,
    left: int,
    flip: int,
    output: U8,
) -> None:
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


@compiled(nogil=True)
def mirror(image: U8) -> None:
    """Mirror (height, width, 3) left and right, in place."""
    width = image.shape[1]
    for row in range(image.shape[0]):
        for column in range(width // 2):
            other = width - 1 - column
            for channel in range(3):
                swapped = image[row, column, channel]
                image[row, column, channel] = image[row, other, channel]
                image[row, other, channel] = swapped
