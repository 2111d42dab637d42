"""What a view's pixels are, image by image, with Pillow and numpy."""

from __future__ import annotations

import io
import threading

import numpy as np
from PIL import Image

from kdcache.data.views import Placement, view_placements

FILTERS = {0: Image.Resampling.BILINEAR, 1: Image.Resampling.BICUBIC}


def batches_of(positions, size):
    """Cut positions into batches."""
    return np.split(np.asarray(positions), range(size, len(positions), size))


def reader_threads():
    """Return the threads of readers that run."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("kdcache-reader")]


def read_all(reader, view, batches=None):
    """Read a view; return pixels (n, S, S, 3), labels and sample ids in the order of reading."""
    if batches is None:
        count = len(reader.beton)
        batches = np.split(np.arange(count), range(reader.batch_size, count, reader.batch_size))
    read = [
        (batch.images.permute(0, 2, 3, 1).numpy().copy(), batch.labels, batch.sample_ids)
        for batch in reader.read(batches, view)
    ]
    return tuple(np.concatenate(parts) for parts in zip(*read, strict=True))


def places_of(reader, view):
    """Return the placement of each image of a reader's beton."""
    beton = reader.beton
    found = view_placements(reader.views, view, beton.view_keys, beton.sizes)
    return [Placement(*numbers) for numbers in found.tolist()]


def stored_bytes(beton, position):
    """Return the bytes of one image in a beton."""
    pointer, length = int(beton.pointers[position]), int(beton.lengths[position])
    return np.fromfile(beton.path, dtype=np.uint8, count=length, offset=pointer)


def decode(beton, position, scale=1):
    """Return the whole image; a JPEG at 1 / scale of its size. Pillow decodes it."""
    content = stored_bytes(beton, position)
    height, width = (int(side) for side in beton.sizes[position])
    if beton.manifest.write_mode == "raw":
        return content.reshape(height, width, 3)
    with Image.open(io.BytesIO(content)) as image:
        if scale > 1:
            image.draft(image.mode, (width // scale, height // scale))
        assert image.size == (-(-width // scale), -(-height // scale))
        return np.asarray(image.convert("RGB"))


def cut(image, top, left, height, width):
    """Return a box of an image, zeros where it lies outside."""
    margin = max(-top, -left, top + height - image.shape[0], left + width - image.shape[1], 0)
    padded = np.pad(image, [(margin, margin), (margin, margin), (0, 0)])
    return padded[top + margin : top + margin + height, left + margin : left + margin + width]


def resize(image, height, width, is_bicubic=False, box=None):
    """Resize with Pillow, columns first (version 13 takes some shapes in the other order).

    Args:
        image: (rows, columns) or (rows, columns, 3) uint8.
        height: of the result.
        width: of the result.
        is_bicubic: the filter is bicubic; otherwise bilinear.
        box: (top, left, bottom, right), which may be fractional; all of the image by default.
    """
    top, left, bottom, right = box or (0, 0, image.shape[0], image.shape[1])
    resample = FILTERS[int(is_bicubic)]
    narrow = Image.fromarray(np.ascontiguousarray(image)).resize(
        (width, image.shape[0]), resample, box=(left, 0, right, image.shape[0])
    )
    return np.asarray(narrow.resize((width, height), resample, box=(0, top, width, bottom)))


def scale_of(place, sizes, views):
    """Return how far a JPEG is shrunk while it is decoded: the box stays at least as large."""
    if views.decode == "full" or place.top < 0 or place.left < 0:
        return 1
    if place.top + place.height > sizes[0] or place.left + place.width > sizes[1]:
        return 1
    return max(
        scale
        for scale in (1, 2, 4, 8)
        if scale == 1
        or (
            place.height >= scale * place.resized_height
            and place.width >= scale * place.resized_width
        )
    )


def view_of(reader, place, position):
    """Return the pixels of one view: decode, cut the box out, resize, take the window, mirror."""
    beton, size = reader.beton, reader.views.image_size
    scale = scale_of(place, beton.sizes[position], reader.views)
    # The nearest rows and columns of the smaller image; halves count upwards.
    top, end, left, right = (
        int(np.floor(edge / scale + 0.5))
        for edge in (place.top, place.top + place.height, place.left, place.left + place.width)
    )
    box = cut(decode(beton, position, scale), top, left, end - top, right - left)
    whole = resize(box, place.resized_height, place.resized_width, place.is_bicubic)
    first, start = place.window_top, place.window_left
    window = whole[first : first + size, start : start + size]
    return window[:, ::-1] if place.flip else window


def views_of(reader, view):
    """Return the pixels of one view of every image, (N, S, S, 3)."""
    places = places_of(reader, view)
    return np.stack([view_of(reader, place, position) for position, place in enumerate(places)])
