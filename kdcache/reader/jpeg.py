"""Read a JPEG's header, and cut the rows that a box needs out of it, as a smaller JPEG.

The packer ends each row of MCUs with a restart marker, so a row can be decoded without the rows
before it. One more row on each side makes the result equal, bit for bit, to the same rows of the
whole image: chroma is interpolated from neighbouring rows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kdcache.compiled import compiled

_SOF0, _SOF1, _SOF2, _SOS, _DRI = 0xC0, 0xC1, 0xC2, 0xDA, 0xDD
_FIRST_SOF, _LAST_SOF = 0xC0, 0xCF
_DHT, _JPG, _DAC = 0xC4, 0xC8, 0xCC  # these three among them are no frames
_APP0, _APP14 = 0xE0, 0xEE
_FILL = 0xFF  # any number of these may stand before a marker
_RGB_IDS = (0x52, 0x47, 0x42)  # "RGB"


@compiled(nogil=True)
def has_size(content: npt.NDArray[np.uint8], height: int, width: int) -> bool:
    """Return whether a JPEG states a size. The decoder would fill the rows of another size.

    Args:
        content: a complete JPEG.
        height: expected height in pixels.
        width: expected width in pixels.
    """
    offset = 2
    while offset + 9 <= len(content) and content[offset] == 0xFF:
        marker = content[offset + 1]
        if marker == _FILL:
            offset += 1
            continue
        is_frame = _FIRST_SOF <= marker <= _LAST_SOF
        if is_frame and marker not in (_DHT, _JPG, _DAC):
            stated_height = (np.int64(content[offset + 5]) << 8) | content[offset + 6]
            stated_width = (np.int64(content[offset + 7]) << 8) | content[offset + 8]
            return stated_height == height and stated_width == width
        offset += 2 + ((np.int64(content[offset + 2]) << 8) | content[offset + 3])
    return False


@compiled(nogil=True)
def sampling_factors(content: npt.NDArray[np.uint8]) -> tuple[int, int, int]:
    """Return how a JPEG stores its components, if it is in YCbCr with a usual chroma resolution.

    Args:
        content: a complete JPEG.

    Returns:
        (components, pixels per chroma sample in a row, and in a column): (1, 1, 1) for grey;
        3 components with factors of 1 or 2; otherwise (0, 0, 0).
    """
    frame = adobe = 0
    is_jfif = False
    offset = 2
    while offset + 4 <= len(content) and content[offset] == 0xFF and frame == 0:
        marker = content[offset + 1]
        if marker == _FILL:
            offset += 1
            continue
        if marker in (_SOF0, _SOF1, _SOF2):
            frame = offset
        elif marker == _APP0 and content[offset + 4] == 0x4A:  # "JFIF"
            is_jfif = True
        elif marker == _APP14 and content[offset + 4] == 0x41:  # "Adobe"
            adobe = offset
        offset += 2 + ((np.int64(content[offset + 2]) << 8) | content[offset + 3])
    if frame == 0 or frame + 19 > len(content):
        return 0, 0, 0
    components = np.int64(content[frame + 9])
    if components == 1:
        return 1, 1, 1
    if components != 3 or content[frame + 14] != 0x11 or content[frame + 17] != 0x11:
        return 0, 0, 0
    # libjpeg's rule for files that do not say it in a JFIF header.
    is_rgb = not is_jfif
    if adobe > 0:
        is_rgb = is_rgb and content[adobe + 15] == 0
    else:
        for component in range(3):
            is_rgb = is_rgb and content[frame + 10 + 3 * component] == _RGB_IDS[component]
    horizontal = int(np.int64(content[frame + 11] >> 4))
    vertical = int(np.int64(content[frame + 11] & 15))
    if is_rgb or horizontal not in (1, 2) or vertical not in (1, 2):
        return 0, 0, 0
    return 3, horizontal, vertical


@compiled(nogil=True)
def cut_rows(
    content: npt.NDArray[np.uint8], top: int, end: int, cut: npt.NDArray[np.uint8]
) -> tuple[int, int, int]:
    """Write a JPEG that holds the pixel rows [top, end) and a few around them.

    Args:
        content: a complete JPEG.
        top: first pixel row needed, in [0, height).
        end: one past the last, in (top, height].
        cut: at least as long as `content`, written from its start.

    Returns:
        (bytes written, first pixel row of the cut, number of its rows). There are 0 bytes if the
        whole image is needed, or if the JPEG has more than one scan or lacks a marker at the end of
        a row.
    """
    frame = interval = scanned = 0
    offset = 2
    while True:
        marker = content[offset + 1]
        length = (np.int64(content[offset + 2]) << 8) | content[offset + 3]
        if marker in (_SOF0, _SOF1):
            frame = offset
        elif marker == _DRI:
            interval = (np.int64(content[offset + 4]) << 8) | content[offset + 5]
        elif marker == _SOS:
            scanned = content[offset + 4]
        offset += 2 + length
        if offset + 4 > len(content):
            return 0, 0, 0
        if marker == _SOS:
            break
        if content[offset] != 0xFF:
            return 0, 0, 0
    # Components in separate scans lie one after the other in the file.
    if frame == 0 or interval == 0 or scanned != content[frame + 9]:
        return 0, 0, 0
    height = (np.int64(content[frame + 5]) << 8) | content[frame + 6]
    width = (np.int64(content[frame + 7]) << 8) | content[frame + 8]
    horizontal = vertical = 1
    if content[frame + 9] > 1:
        for component in range(content[frame + 9]):
            sampling = np.int64(content[frame + 11 + 3 * component])
            horizontal = max(horizontal, sampling >> 4)
            vertical = max(vertical, sampling & 15)
    row_height = 8 * vertical
    rows = (height + row_height - 1) // row_height
    if interval != (width + 8 * horizontal - 1) // (8 * horizontal):
        return 0, 0, 0
    first = max(0, top // row_height - 1)
    last = min(rows, (end + row_height - 1) // row_height + 1)
    if first == 0 and last == rows:
        return 0, 0, 0
    cut[:offset] = content[:offset]
    held = min(height, last * row_height) - first * row_height
    cut[frame + 5] = held >> 8
    cut[frame + 6] = held & 255
    written = offset
    row = 0
    start = offset
    while row < last:
        # Find the marker that ends this row; stuffed bytes are FF 00.
        while offset + 1 < len(content):
            if content[offset] == 0xFF and content[offset + 1] != 0:
                break
            offset += 1
        if offset + 1 >= len(content):
            return 0, 0, 0  # damaged; decoding the whole image reports the error
        if row >= first:
            size = offset - start
            cut[written : written + size] = content[start:offset]
            written += size
            cut[written] = 0xFF
            cut[written + 1] = 0xD0 + ((row - first) & 7) if row < last - 1 else 0xD9
            written += 2
        offset += 2
        start = offset
        row += 1
    return written, first * row_height, held
