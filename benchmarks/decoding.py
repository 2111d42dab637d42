"""The steps that kdcache takes for a view, one by one, for timing."""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from ffcv.libffcv import resize_crop
from PIL import Image

from kdcache.data.beton import Beton
from kdcache.data.jpeg_library import address_of, new_decoder
from kdcache.data.views import Placement, Views, view_placements
from kdcache.reader.jpeg import cut_rows
from kdcache.reader.planes import decode_planes, planes_bytes
from kdcache.reader.render import decode_rgb, rows_needed
from kdcache.reader.resize import ResizeScratch, resize_box, resize_scratch

U8 = npt.NDArray[np.uint8]

_LOCAL = threading.local()


class DecodingJob(NamedTuple):
    """A JPEG and the placement of a view in it."""

    content: U8
    """The stored JPEG file."""
    height: int
    width: int
    place: Placement
    size: int
    """Side of the view."""
    cut: U8
    """A JPEG with the rows that the view needs; `content` if all rows are needed."""
    first: int
    """Row of the image at which `cut` begins."""
    held: int
    """Number of rows of `cut`."""

    def find_rows(self) -> tuple[int, int, int]:
        """Find the restart markers and copy the rows."""
        top, end = rows_needed(self.place, self.size, 1)
        space = np.empty(len(self.content) + 8, dtype=np.uint8)
        found: tuple[int, int, int] = cut_rows(self.content, top, end, space)
        return found

    def decode(self) -> U8:
        """Decode the rows to RGB."""
        return _decode(self.cut, self.held, self.width)

    def decode_eighth(self) -> U8:
        """Decode the rows at 1/8: all of the entropy decoding, and 1/64 of the rest."""
        return _decode(self.cut, -(-self.held // 8), -(-self.width // 8))

    def decode_planes(self) -> None:
        """Decode the rows to luma, and to chroma at half its resolution."""
        scratch = np.empty(planes_bytes(self.held, self.width), dtype=np.uint8)
        table = np.empty(8, dtype=np.int64)
        status, *_ = decode_planes(
            self.cut, self.held, self.width, 1, _decoder(), _functions(), table, scratch
        )
        assert status == 0

    def decode_whole(self) -> U8:
        """Decode all rows, as unmodified FFCV does."""
        return _decode(self.content, self.height, self.width)

    def resize(self, decoded: U8) -> U8:
        """Return the resized box, (S, S, 3)."""
        place, size = self.place, self.size
        top = float(place.top - self.first)
        left = float(place.left)
        output = np.empty((size, size, 3), dtype=np.uint8)
        resize_box(
            decoded,
            (top, top + place.height),
            (left, left + place.width),
            (place.resized_height, place.resized_width),
            (place.window_top, place.window_left),
            False,
            place.flip,
            _scratch(size),
            output,
        )
        return output

    def resize_with_opencv(self, decoded: U8) -> U8:
        """Return the box resized by FFCV, which calls OpenCV with INTER_AREA; not mirrored."""
        place = self.place
        top = place.top - self.first
        output = np.empty((self.size, self.size, 3), dtype=np.uint8)
        edges = (top, top + place.height, place.left, place.left + place.width)
        resize_crop(decoded, *edges, output)
        return output

    def resize_with_pillow(self, image: Image.Image) -> Image.Image:
        """Return the box of an image resized by Pillow; not mirrored."""
        place = self.place
        top = place.top - self.first
        box = (place.left, top, place.left + place.width, top + place.height)
        return image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)


def _decode(content: U8, height: int, width: int) -> U8:
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    assert decode_rgb(content, height, width, _decoder(), _functions(), pixels.reshape(-1)) == 0
    return pixels


def _decoder() -> int:
    """Return the decoder of this thread."""
    if not hasattr(_LOCAL, "decoder"):
        _LOCAL.decoder = new_decoder()
    decoder: int = _LOCAL.decoder
    return decoder


def _functions() -> npt.NDArray[np.int64]:
    return np.array([address_of("tjDecompress2"), address_of("tjDecompressToYUVPlanes")])


def _scratch(size: int) -> ResizeScratch:
    """Return this thread's scratch for images of up to 4,096 pixels."""
    if getattr(_LOCAL, "size", None) != size:
        _LOCAL.size = size
        arrays = resize_scratch(1, 4096, 4096, size)
        _LOCAL.scratch = ResizeScratch(*(array[0] for array in arrays))
    scratch: ResizeScratch = _LOCAL.scratch
    return scratch


def decoding_jobs(beton: Beton, views: Views, *, view: int) -> list[DecodingJob]:
    """Return a job for each image of a beton of JPEGs, in the order of the file."""
    places = view_placements(views, view, beton.view_keys, beton.sizes)
    file = np.fromfile(beton.path, dtype=np.uint8)
    jobs = []
    for position, numbers in enumerate(places.tolist()):
        start = int(beton.pointers[position])
        content = file[start : start + int(beton.lengths[position])].copy()
        height, width = (int(side) for side in beton.sizes[position])
        place = Placement(*numbers)
        space = np.empty(len(content) + 8, dtype=np.uint8)
        top, end = rows_needed(place, views.image_size, 1)
        length, first, held = cut_rows(content, top, end, space)
        rows = (space[:length].copy(), first, held) if length else (content, 0, height)
        jobs.append(DecodingJob(content, height, width, place, views.image_size, *rows))
    return jobs
