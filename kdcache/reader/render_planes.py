"""Compiled functions that render views of a stored image: the pixel definition `planes`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kdcache.compiled import compiled
from kdcache.data.views import Placement
from kdcache.reader.jpeg import has_size
from kdcache.reader.planes import NEUTRAL, decode_planes, planes_of_rgb, resize_planes
from kdcache.reader.render import (
    SCALES,
    WRONG_SIZE,
    find_rows,
    has_scale,
    is_inside,
    placement,
    scale_of,
    scaled,
)
from kdcache.reader.resize import ResizeScratch

U8 = npt.NDArray[np.uint8]


@compiled(nogil=True)
def render_jpeg_planes(
    content: U8,
    height: int,
    width: int,
    placements: npt.NDArray[np.int64],
    is_scaled: bool,
    decoder: int,
    functions: npt.NDArray[np.int64],
    table: npt.NDArray[np.int64],
    decoded: U8,
    padded: U8,
    cut: U8,
    scratch: ResizeScratch,
    resized: U8,
    outputs: U8,
) -> int:
    """Decode a JPEG once for each scale among its views, and render every view.

    Args:
        content: see `render_jpeg`, and so are the others.
        height: see there.
        width: see there.
        placements: see there.
        is_scaled: see there.
        decoder: see there.
        functions: see there.
        table: (8,) scratch for addresses.
        decoded: scratch for planes.
        padded: see there.
        cut: see there.
        scratch: see there.
        resized: (3, S, S, 1) scratch.
        outputs: see there.

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
        problem, pitch, blue, red = decode_planes(
            file, held, width, scale, decoder, functions, table, decoded
        )
        status |= problem
        for v in range(len(placements)):
            place = placement(placements[v])
            if scale_of(place, height, width, is_scaled) == scale:
                render_planes(
                    decoded,
                    pitch,
                    (blue, red),
                    rows,
                    columns,
                    is_inside(place, height, width),
                    scaled(place, first, scale),
                    padded,
                    scratch,
                    resized,
                    outputs[v],
                )
    return status


@compiled(nogil=True)
def render_raw_planes(
    image: U8,
    placements: npt.NDArray[np.int64],
    decoded: U8,
    padded: U8,
    scratch: ResizeScratch,
    resized: U8,
    outputs: U8,
) -> None:
    """Render every view of an image that is stored as pixels.

    Args:
        image: (height, width, 3) RGB.
        placements: (V, 10) a Placement per view.
        decoded: scratch for planes.
        padded: scratch for a padded box.
        scratch: for resizing.
        resized: (3, S, S, 1) scratch.
        outputs: (V, S, S, 3), written completely.
    """
    height, width = image.shape[0], image.shape[1]
    offsets = planes_of_rgb(image, decoded)
    for v in range(len(placements)):
        place = placement(placements[v])
        render_planes(
            decoded,
            width,
            offsets,
            height,
            width,
            is_inside(place, height, width),
            place,
            padded,
            scratch,
            resized,
            outputs[v],
        )


@compiled(nogil=True)
def render_planes(
    planes: U8,
    pitch: int,
    offsets: tuple[int, int],
    height: int,
    width: int,
    inside: bool,
    place: Placement,
    padded: U8,
    scratch: ResizeScratch,
    resized_planes: U8,
    output: U8,
) -> None:
    """Cut a box out of an image's planes, resize it, convert it to RGB.

    Args:
        planes: the decoded planes, luma from offset 0.
        pitch: bytes per row of luma.
        offsets: of the chroma planes.
        height: number of decoded rows.
        width: number of decoded columns.
        inside: see `render`.
        place: in pixels of luma.
        padded: scratch for a box with padding.
        scratch: for resizing.
        resized_planes: (3, S, S, 1) scratch.
        output: (S, S, 3), written completely.
    """
    box = (place.top, place.left, place.height, place.width)
    if not inside:
        # Chroma samples lie on even rows and columns, so the padded box begins on such.
        top, left = place.top // 2 * 2, place.left // 2 * 2
        rows, columns = place.top + place.height - top, place.left + place.width - left
        half_rows, half_columns = (rows + 1) // 2, (columns + 1) // 2
        first = rows * columns
        second = first + half_rows * half_columns
        for plane in range(3):
            source, lines, samples, stride = int(np.int64(0)), height, width, pitch
            start, end, above, before, fill = int(np.int64(0)), first, top, left, int(np.int64(0))
            window_rows, window_columns = rows, columns
            if plane > 0:
                source, lines, samples = offsets[plane - 1], (height + 1) // 2, (width + 1) // 2
                stride = samples
                start = first if plane == 1 else second
                end, fill = start + half_rows * half_columns, int(np.int64(NEUTRAL))
                above, before = top // 2, left // 2
                window_rows, window_columns = half_rows, half_columns
            copy_plane(
                planes[source : source + lines * stride].reshape(lines, stride),
                samples,
                above,
                before,
                fill,
                padded[start:end].reshape(window_rows, window_columns),
            )
        box = (place.top - top, place.left - left, place.height, place.width)
        planes, pitch, offsets = padded, columns, (first, second)
        height, width = rows, columns
    resize_planes(
        planes,
        pitch,
        offsets,
        height,
        width,
        box,
        (place.resized_height, place.resized_width),
        (place.window_top, place.window_left),
        place.is_bicubic != 0,
        place.flip,
        scratch,
        resized_planes,
        output,
    )


@compiled(nogil=True)
def copy_plane(plane: U8, width: int, top: int, left: int, fill: int, output: U8) -> None:
    """Copy a box of the output's size out of a plane, with one level outside the image.

    Args:
        plane: (height, at least `width`).
        width: width of the image.
        top: first row of the box, may be negative.
        left: first column of the box, may be negative.
        fill: the level outside.
        output: (box height, box width), written completely.
    """
    for row in range(output.shape[0]):
        for column in range(output.shape[1]):
            y, x = row + top, column + left
            is_inside_image = 0 <= y < plane.shape[0] and 0 <= x < width
            output[row, column] = plane[y, x] if is_inside_image else fill
