from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kdcache.data.beton import open_beton
from kdcache.reader.batches import PixelReader
from kdcache.reader.jpeg import cut_rows
from kdcache.reader.render import copy_box, mirror
from tests.reader.reference import (
    boxes_of,
    cut,
    decode,
    read_all,
    scale_of,
    stored_bytes,
    view_of,
)

VIEWS = [0, 1, 2, 7]


# --- the parts ---


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_a_box_is_cut_out_of_an_image_framed_with_zeros(data):
    sides = st.integers(1, 12)
    height, width, rows, columns = (data.draw(sides) for _ in range(4))
    top = data.draw(st.integers(-15, 15))
    left = data.draw(st.integers(-15, 15))
    flip = data.draw(st.integers(0, 1))
    image = np.arange(1, height * width * 3 + 1).reshape(height, width, 3).astype(np.uint8)
    output = np.full((rows, columns, 3), 77, dtype=np.uint8)
    copy_box(image, top, left, flip, output)
    expected = cut(image, top, left, rows, columns)
    assert np.array_equal(output, expected[:, ::-1] if flip else expected)


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 1, 3), (2, 5, 3), (4, 6, 3)], ids=str)
def test_mirroring_exchanges_left_and_right(shape):
    image = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    mirrored = image.copy()
    mirror(mirrored)
    assert np.array_equal(mirrored, image[:, ::-1])


# --- the whole, against an independent reference ---


@pytest.mark.parametrize("view", VIEWS)
def test_a_crop_with_padding_is_exact(crop_reader, view):
    images, labels, sample_ids = read_all(crop_reader, view)
    boxes = boxes_of(crop_reader, view)
    expected = [view_of(crop_reader, box, position) for position, box in enumerate(boxes)]
    assert np.array_equal(images, expected)
    assert np.array_equal(labels, crop_reader.beton.labels)
    assert np.array_equal(sample_ids, crop_reader.beton.sample_ids)


def test_views_are_different_pictures_and_the_clean_one_is_the_image(crop_reader):
    clean, first, second = (read_all(crop_reader, view)[0] for view in (0, 1, 2))
    whole = [decode(crop_reader.beton, position) for position in range(len(clean))]
    assert np.array_equal(clean, whole)
    for one, other in [(clean, first), (first, second)]:
        assert (one != other).any(axis=(1, 2, 3)).mean() > 0.9


def test_the_corner_of_a_crop_is_black_where_padding_shows(crop_reader):
    images = read_all(crop_reader, 1)[0]
    boxes = boxes_of(crop_reader, 1)
    above = np.flatnonzero(boxes[:, 0] == -4)
    assert len(above) > 0
    for position in above:
        assert not images[position, :4].any()
        assert images[position, 4:].any()


@pytest.mark.parametrize("view", VIEWS)
def test_a_crop_of_another_size_is_padded_then_resized(make_reader, mixed_beton, view):
    reader = make_reader(mixed_beton, "pad-crop(4, flip)", 24)
    images = read_all(reader, view)[0]
    expected = [view_of(reader, box, i) for i, box in enumerate(boxes_of(reader, view))]
    assert np.array_equal(images, expected)


def test_a_raw_box_is_resized_as_ffcv_and_opencv_resize_it(make_reader, mixed_beton):
    reader = make_reader(mixed_beton, "rrc", 12)
    boxes = boxes_of(reader, 3)
    images = read_all(reader, 3)[0]
    assert np.array_equal(images, [view_of(reader, box, i) for i, box in enumerate(boxes)])
    for position, (top, left, height, width, flip) in enumerate(boxes):
        box = decode(reader.beton, position)[top : top + height, left : left + width]
        expected = cv2.resize(box, (12, 12), interpolation=cv2.INTER_AREA).astype(int)
        # Another build of OpenCV may round the other way.
        assert abs(images[position] - (expected[:, ::-1] if flip else expected)).max() <= 1


@pytest.mark.parametrize("share", [0.7, 1.0])
def test_the_clean_view_is_the_square_that_the_views_say(photo_reader, share):
    views = photo_reader.views._replace(center_crop_ratio=share)
    reader = PixelReader(photo_reader.beton, views, batch_size=16, num_workers=2)
    sides = (reader.beton.sizes.min(axis=1) * share).astype(int)
    boxes = boxes_of(reader, 0)
    assert np.array_equal(boxes[:, 2:4], np.stack([sides, sides], axis=1))
    assert np.array_equal(boxes[:, :2], (reader.beton.sizes - sides[:, None]) // 2)
    scales = [
        scale_of(box, sizes, 12) for box, sizes in zip(boxes, reader.beton.sizes, strict=True)
    ]
    expected = [
        view_of(reader, box, i, scale)
        for i, (box, scale) in enumerate(zip(boxes, scales, strict=True))
    ]
    assert np.array_equal(read_all(reader, 0)[0], expected)
    assert np.array_equal(read_all(reader, 1)[0], read_all(photo_reader, 1)[0])


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("image_size", [12, 64])
def test_a_jpegs_box_is_the_whole_jpegs_box(make_reader, photo_beton, image_size, view):
    # The reader decodes some rows, at the scale that the box allows; the whole image has the same.
    reader = make_reader(photo_beton, "rrc", image_size)
    images = read_all(reader, view)[0]
    sizes = reader.beton.sizes
    for position, box in enumerate(boxes_of(reader, view)):
        scale = scale_of(box, sizes[position], image_size)
        expected = view_of(reader, box, position, scale)
        assert np.array_equal(images[position], expected), (position, box, scale)


def test_the_photos_need_every_scale(make_reader, photo_beton):
    scales = set()
    for image_size in (12, 64):
        reader = make_reader(photo_beton, "rrc", image_size)
        for view in VIEWS:
            boxes = zip(boxes_of(reader, view), reader.beton.sizes, strict=True)
            scales |= {scale_of(box, size, image_size) for box, size in boxes}
    assert scales == {1, 2, 4, 8}


@pytest.mark.parametrize(("image_size", "levels"), [(12, 8), (64, 2.5)])
def test_a_jpegs_view_looks_as_pillow_shows_it(make_reader, photo_beton, image_size, levels):
    reader = make_reader(photo_beton, "rrc", image_size)
    images = read_all(reader, 1)[0].astype(int)
    for position, (top, left, height, width, flip) in enumerate(boxes_of(reader, 1)):
        with Image.open(io.BytesIO(stored_bytes(reader.beton, position))) as image:
            box = np.asarray(image)[top : top + height, left : left + width]
        expected = cv2.resize(box, (image_size, image_size), interpolation=cv2.INTER_AREA)
        difference = abs(images[position] - (expected[:, ::-1] if flip else expected))
        # libjpeg's fast transform is off by a few levels. At 1 / scale the edges of a box move by
        # up to half a pixel: in 12 pixels of a steep image that is more, yet far from the 50 levels
        # of another box.
        assert difference.mean() < levels


# Of 160 pixels, most windows lie beside images of 80 to 160: above, below or next to them.
@pytest.mark.parametrize("padding", [20, 160])
@pytest.mark.parametrize("view", [0, 1, 2])
def test_a_jpegs_padding_is_black(make_reader, photo_beton, view, padding):
    reader = make_reader(photo_beton, f"pad-crop({padding}, flip)", 32)
    boxes, sizes = boxes_of(reader, view), reader.beton.sizes
    images = read_all(reader, view)[0]
    for position, (box, size) in enumerate(zip(boxes, sizes, strict=True)):
        expected = view_of(reader, box, position, scale_of(box, size, 32))
        assert np.array_equal(images[position], expected), (position, box)


def test_rows_are_cut_out_of_a_jpeg_with_one_scan_alone(photo_beton):
    content = stored_bytes(open_beton(photo_beton), 0)
    scan = bytes(content).index(b"\xff\xda")
    room = np.empty_like(content)
    written, first, held = cut_rows(content, 32, 40, room)
    assert (first <= 24, first + held >= 48, 0 < written < len(content)) == (True, True, True)
    content[scan + 4] -= 1  # its components in scans of their own lie one after the other
    assert cut_rows(content, 32, 40, room) == (0, 0, 0)
