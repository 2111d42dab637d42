"""The calls of FFCV's library that kdcache makes for a view, one by one, for timing."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from ffcv.libffcv import imdecode, resize_crop

from kdcache.data.beton import Beton
from kdcache.data.views import Views, view_parameters
from kdcache.reader.jpeg import cut_rows
from kdcache.reader.render import choose_scale, mirror

U8 = npt.NDArray[np.uint8]


class DecodingJob(NamedTuple):
    """A JPEG and a box in it."""

    content: U8
    """The stored JPEG file."""
    height: int
    width: int
    box: npt.NDArray[np.int64]
    """Top, left, height, width, flip."""
    scale: int
    """The box is decoded at 1/scale of its size: 1, 2, 4 or 8."""
    cut: U8
    """A JPEG with the rows of the box only; `content` if all rows are needed."""
    first: int
    """Row of the image at which `cut` begins."""
    held: int
    """Number of rows of `cut`."""

    def find_rows(self) -> tuple[int, int, int]:
        """Find the restart markers and copy the rows."""
        top, end = max(int(self.box[0]), 0), min(int(self.box[0] + self.box[2]), self.height)
        space = np.empty(len(self.content) + 8, dtype=np.uint8)
        found: tuple[int, int, int] = cut_rows(self.content, top, end, space)
        return found

    def decode(self) -> U8:
        """Decode the rows at the box's scale."""
        return _decode(self.cut, self.held, self.width, self.scale)

    def decode_eighth(self) -> U8:
        """Decode the rows at 1/8: all of the entropy decoding, and 1/64 of the rest."""
        return _decode(self.cut, self.held, self.width, 8)

    def decode_whole(self) -> U8:
        """Decode all rows at full size, as unmodified FFCV does."""
        return _decode(self.content, self.height, self.width, 1)

    def resize(self, decoded: U8, image_size: int) -> U8:
        """Return the resized box, not mirrored, (image_size, image_size, 3)."""
        half = self.scale // 2
        top, left = self.box[0] - self.first, self.box[1]
        edges = (top, top + self.box[2], left, left + self.box[3])
        output = np.empty((image_size, image_size, 3), dtype=np.uint8)
        resize_crop(decoded, *((edge + half) // self.scale for edge in edges), output)
        return output

    def mirror(self, output: U8) -> None:
        """Mirror the output if the view is flipped."""
        if self.box[4]:
            mirror(output)


def _decode(content: U8, height: int, width: int, scale: int) -> U8:
    pixels = np.empty((-(-height // scale), -(-width // scale), 3), dtype=np.uint8)
    shape = (height, width)
    assert imdecode(content, pixels, *shape, *shape, scale_factor_denom=scale) == 0
    return pixels


def decoding_jobs(beton: Beton, views: Views, *, view: int) -> list[DecodingJob]:
    """Return a job for each image of a beton of JPEGs, in the order of the file."""
    boxes = view_parameters(views.policy, views.seed, view, beton.view_keys, beton.sizes)
    file = np.memmap(beton.path, dtype=np.uint8, mode="r")
    jobs = []
    for position, box in enumerate(boxes.astype(np.int64)):
        start = int(beton.pointers[position])
        content = np.array(file[start : start + int(beton.lengths[position])])
        height, width = (int(side) for side in beton.sizes[position])
        top, end = max(int(box[0]), 0), min(int(box[0] + box[2]), height)
        space = np.empty(len(content) + 8, dtype=np.uint8)
        length, first, held = cut_rows(content, top, end, space)
        scale = choose_scale(box, height, width, views.image_size)
        rows = (space[:length].copy(), first, held) if length else (content, 0, height)
        jobs.append(DecodingJob(content, height, width, box, scale, *rows))
    return jobs
