from __future__ import annotations

import ctypes
import mmap

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kdcache.data.views import Placement
from kdcache.reader.array_pixels import render_array
from kdcache.reader.resize import ResizeScratch, filter_weights, resize_box, resize_scratch
from tests.reader.reference import resize


def resized_box(image, rows, columns, resized, window, is_bicubic, flip, size):
    """Resize with the compiled function; channels last."""
    scratch = ResizeScratch(*(array[0] for array in resize_scratch(1, *image.shape[:2], size)))
    output = np.full((size, size, image.shape[2]), 77, dtype=np.uint8)
    rows, columns = tuple(map(float, rows)), tuple(map(float, columns))
    resize_box(image, rows, columns, resized, window, is_bicubic, flip, scratch, output)
    return output


@st.composite
def boxes(draw):
    """An image, a box of whole pixels in it, the size it is resized to, a window, a flip."""
    height, width = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    image = np.random.default_rng(draw(st.integers(0, 2**32))).integers(
        0, 256, (height, width, draw(st.sampled_from([1, 3]))), dtype=np.uint8
    )
    if draw(st.booleans()):  # the extremes overshoot with the bicubic filter
        image = (image > 127).astype(np.uint8) * np.uint8(255)
    rows, columns = draw(st.integers(1, height)), draw(st.integers(1, width))
    top, left = draw(st.integers(0, height - rows)), draw(st.integers(0, width - columns))
    size = draw(st.integers(1, 45))
    resized = (size + draw(st.integers(0, 20)), size + draw(st.integers(0, 20)))
    window = tuple(draw(st.integers(0, side - size)) for side in resized)
    flip, is_bicubic = draw(st.integers(0, 1)), draw(st.booleans())
    return (
        image,
        Placement(top, left, rows, columns, flip, *resized, *window, int(is_bicubic)),
        size,
    )


@given(boxes())
@settings(deadline=None, max_examples=300)
def test_a_box_is_resized_as_pillow_resizes_it(drawn):
    image, place, size = drawn
    top, left, rows, columns = place[:4]
    edges = ((top, top + rows), (left, left + columns))
    resized = (place.resized_height, place.resized_width)
    window = (place.window_top, place.window_left)
    is_bicubic = bool(place.is_bicubic)
    found = resized_box(image, *edges, resized, window, is_bicubic, place.flip, size)
    box = image[top : top + rows, left : left + columns]
    whole = resize(box.squeeze(axis=2) if box.shape[2] == 1 else box, *resized, is_bicubic)
    expected = whole.reshape(*resized, -1)[window[0] :, window[1] :][:size, :size]
    assert np.array_equal(found, expected[:, ::-1] if place.flip else expected)


@given(boxes())
@settings(deadline=None, max_examples=100)
def test_array_arithmetic_gives_the_same_pixels_with_numpy_and_torch(drawn):
    image, place, size = drawn
    image = np.repeat(image, 3 // image.shape[2], axis=2)
    top, left, rows, columns = place[:4]
    found = render_array(image, place, size, "pillow")
    expected = resized_box(
        image,
        (top, top + rows),
        (left, left + columns),
        (place.resized_height, place.resized_width),
        (place.window_top, place.window_left),
        bool(place.is_bicubic),
        place.flip,
        size,
    )
    assert np.array_equal(found, expected)
    assert np.array_equal(render_array(torch.from_numpy(image), place, size, "pillow"), expected)


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_a_box_between_pixels_is_that_of_pillows_box_argument(data):
    # Half pixels: the chroma of a box with odd edges.
    height, width = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 60))
    image = np.random.default_rng(data.draw(st.integers(0, 2**32))).integers(
        0, 256, (height, width, 1), dtype=np.uint8
    )
    edges = []
    for side in (height, width):
        begin = data.draw(st.integers(0, 2 * side - 1))
        end = data.draw(st.integers(begin + 1, 2 * side))
        edges.append((begin / 2, end / 2))
    rows, columns = edges
    size = data.draw(st.integers(1, 40))
    is_bicubic = data.draw(st.booleans())
    found = resized_box(image, rows, columns, (size, size), (0, 0), is_bicubic, 0, size)
    # "Crop to the enclosing box of whole pixels, resize with the fractional box inside."
    top, left = int(rows[0]), int(columns[0])
    around = image[top : int(np.ceil(rows[1])), left : int(np.ceil(columns[1])), 0]
    box = (rows[0] - top, columns[0] - left, rows[1] - top, columns[1] - left)
    assert np.array_equal(found[..., 0], resize(around, size, size, is_bicubic, box))


@pytest.mark.parametrize("shape", [(20_000, 20), (20, 20_000), (1, 1), (1, 3000), (3000, 1)])
@pytest.mark.parametrize("is_bicubic", [False, True])
def test_extreme_shapes_are_resized_as_pillow_resizes_them(shape, is_bicubic):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    edges = ((0, shape[0]), (0, shape[1]))
    found = resized_box(image, *edges, (24, 24), (0, 0), is_bicubic, 0, 24)
    assert np.array_equal(found, resize(image, 24, 24, is_bicubic))


@pytest.mark.parametrize("is_bicubic", [False, True])
@pytest.mark.parametrize(("source", "target"), [(500, 224), (32, 224), (7, 7), (1, 5), (5, 1)])
def test_the_weights_of_a_pixel_add_up_to_one(source, target, is_bicubic):
    starts = np.empty(target, dtype=np.int64)
    weights = np.full((target, 4 * source + 5), 7, dtype=np.int32)
    taps = filter_weights(0.0, float(source), source, target, 0, is_bicubic, starts, weights)
    # Each weight is rounded by itself, so a sum may be off by half a unit for each.
    assert abs(weights.sum(axis=1) - (1 << 22)).max() <= taps / 2
    assert not weights[:, taps:].any()
    assert starts.min() >= 0
    assert (starts + taps).max() <= source


def test_a_row_of_pixels_is_not_read_beyond_its_end():
    # The last pixel of an array has no fourth byte. A wrong read shows where memory is protected.
    size = mmap.PAGESIZE
    memory = mmap.mmap(-1, 2 * size)
    pixels = np.frombuffer(memory, dtype=np.uint8, count=size)
    count = size // 3
    image = pixels[size - 3 * count :].reshape(1, count, 3)
    image[:] = 5
    libc = ctypes.CDLL(None, use_errno=True)
    address = pixels.ctypes.data + size
    assert libc.mprotect(ctypes.c_void_p(address), size, 0) == 0
    found = resized_box(image, (0, 1), (0, count), (8, 8), (0, 0), False, 0, 8)
    assert (found == 5).all()


def test_pillows_own_order_differs_by_one_level_at_most():
    # Pillow 13 resizes rows first where that is less work; this states how much it matters.
    image = np.random.default_rng(3).integers(0, 256, (400, 40, 3), dtype=np.uint8)
    ours = resize(image, 48, 48).astype(int)
    pillows = np.asarray(Image.fromarray(image).resize((48, 48), Image.Resampling.BILINEAR))
    assert abs(ours - pillows).max() <= 1
