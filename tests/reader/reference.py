"""What a view's pixels are, image by image, in numpy and with FFCV's two C functions."""

from __future__ import annotations

import threading

import numpy as np
from ffcv.libffcv import imdecode, resize_crop

from kdcache.data.views import view_parameters


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


def boxes_of(reader, view):
    """Return the box of each image of a reader's beton, (N, 5)."""
    policy, seed, _, share = reader.views
    keys, sizes = reader.beton.view_keys, reader.beton.sizes
    return view_parameters(policy, seed, view, keys, sizes, center_crop_ratio=share)


def stored_bytes(beton, position):
    """Return the bytes of one image in a beton."""
    pointer, length = int(beton.pointers[position]), int(beton.lengths[position])
    return np.fromfile(beton.path, dtype=np.uint8, count=length, offset=pointer)


def decode(beton, position, scale=1):
    """Return the whole image; a JPEG at 1 / scale of its size."""
    content = stored_bytes(beton, position)
    height, width = (int(side) for side in beton.sizes[position])
    if beton.manifest.write_mode == "raw":
        return content.reshape(height, width, 3)
    image = np.zeros((-(-height // scale), -(-width // scale), 3), dtype=np.uint8)
    status = imdecode(content, image, height, width, height, width, scale_factor_denom=scale)
    assert status == 0
    return image


def cut(image, top, left, height, width):
    """Return a box of an image, zeros where it lies outside."""
    margin = max(-top, -left, top + height - image.shape[0], left + width - image.shape[1], 0)
    padded = np.pad(image, [(margin, margin), (margin, margin), (0, 0)])
    return padded[top + margin : top + margin + height, left + margin : left + margin + width]


def resize(image, size):
    """Resize with the function that stock FFCV resizes with."""
    output = np.empty((size, size, 3), dtype=np.uint8)
    resize_crop(np.ascontiguousarray(image), 0, image.shape[0], 0, image.shape[1], output)
    return output


def scale_of(box, sizes, size):
    """Return how far a JPEG is shrunk while it is decoded: the box stays at least as large."""
    top, left, height, width, _ = (int(number) for number in box)
    if top < 0 or left < 0 or top + height > sizes[0] or left + width > sizes[1]:
        return 1
    return max(scale for scale in (1, 2, 4, 8) if scale == 1 or min(height, width) >= scale * size)


def view_of(reader, box, position, scale=1):
    """Return the pixels of one view: decode, cut the box out, resize, mirror."""
    size = reader.views.image_size
    top, left, height, width = (int(number) for number in box[:4])
    # The nearest rows and columns of the smaller image; halves count upwards.
    top, end = (int(np.floor(edge / scale + 0.5)) for edge in (top, top + height))
    left, right = (int(np.floor(edge / scale + 0.5)) for edge in (left, left + width))
    height, width = end - top, right - left
    window = cut(decode(reader.beton, position, scale), top, left, height, width)
    if (height, width) != (size, size):
        window = resize(window, size)
    return window[:, ::-1] if box[4] else window
