from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode, functional

from kdcache.data.beton import open_beton
from kdcache.data.pack import pack
from kdcache.data.policy import Policy
from kdcache.data.views import Views
from kdcache.options import PackOptions
from kdcache.reader.batches import PixelReader
from kdcache.reader.jpeg import cut_rows
from kdcache.reader.render import copy_box
from tests.reader.reference import (
    cut,
    decode,
    places_of,
    read_all,
    resize,
    scale_of,
    stored_bytes,
    views_of,
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


# --- the whole, against Pillow ---


@pytest.mark.parametrize("view", VIEWS)
def test_a_crop_with_padding_is_exact(crop_reader, view):
    images, labels, sample_ids = read_all(crop_reader, view)
    assert np.array_equal(images, views_of(crop_reader, view))
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
    above = [
        position for position, place in enumerate(places_of(crop_reader, 1)) if place.top == -4
    ]
    assert above
    for position in above:
        assert not images[position, :4].any()
        assert images[position, 4:].any()


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("policy", ["pad-crop(4, flip)", "rrc", "rrc(filter=bicubic)"])
def test_raw_images_are_cut_and_resized_as_pillow_does(make_reader, mixed_beton, policy, view):
    reader = make_reader(mixed_beton, policy, 24)
    assert np.array_equal(read_all(reader, view)[0], views_of(reader, view))


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("decode_mode", ["full", "scaled"])
@pytest.mark.parametrize("image_size", [12, 64])
def test_a_jpegs_view_is_that_of_the_whole_jpeg(
    make_reader, photo_beton, image_size, decode_mode, view
):
    # The reader decodes some rows only; the reference takes all of them.
    reader = make_reader(photo_beton, "rrc", image_size, decode=decode_mode)
    assert np.array_equal(read_all(reader, view)[0], views_of(reader, view))


def test_the_photos_need_every_scale(make_reader, photo_beton):
    scales = set()
    for image_size in (12, 64):
        reader = make_reader(photo_beton, "rrc", image_size, decode="scaled")
        for view in VIEWS:
            places = zip(places_of(reader, view), reader.beton.sizes, strict=True)
            scales |= {scale_of(place, sizes, reader.views) for place, sizes in places}
    assert scales == {1, 2, 4, 8}


def test_a_full_decoding_has_no_scale(make_reader, photo_beton):
    full, scaled = (
        make_reader(photo_beton, "rrc", 12, decode=decode) for decode in ("full", "scaled")
    )
    assert (read_all(full, 1)[0] != read_all(scaled, 1)[0]).any()


# 0.875 and the ratio of ResNet-50's second weights; 20 px is not a whole number of pixels at 0.7.
@pytest.mark.parametrize("ratio", [0.7, 0.875, 224 / 232, 1.0])
@pytest.mark.parametrize("clean_filter", ["bilinear", "bicubic"])
@pytest.mark.parametrize("image_size", [20, 64, 100])
def test_the_clean_view_is_torchvisions_resize_and_center_crop(
    photo_beton, image_size, clean_filter, ratio
):
    views = Views(
        Policy.parse("rrc"),
        0,
        image_size,
        center_crop_ratio=ratio,
        clean_filter=clean_filter,
    )
    reader = PixelReader(open_beton(photo_beton), views, batch_size=16, num_workers=2)
    found = read_all(reader, 0)[0]
    assert np.array_equal(found, views_of(reader, 0))
    interpolation = InterpolationMode(clean_filter)
    for position, image in enumerate(found):
        pillow = Image.fromarray(decode(reader.beton, position))
        expected = functional.center_crop(
            functional.resize(pillow, views.resize_size, interpolation), image_size
        )
        difference = abs(np.asarray(expected).astype(int) - image)
        # Pillow 13 resizes the rows of a few shapes first.
        size = functional._compute_resized_output_size(pillow.size[::-1], [views.resize_size])  # noqa: SLF001
        is_columns_first = np.array_equal(
            np.asarray(functional.resize(pillow, views.resize_size, interpolation)),
            resize(np.asarray(pillow), *size, clean_filter == "bicubic"),
        )
        if is_columns_first:
            assert not difference.any()
        elif clean_filter == "bilinear":
            assert difference.max() <= 1


@pytest.mark.parametrize("size", [224, 256, 288, 299, 480, 518, 33])
@pytest.mark.parametrize("resized", [232, 256, 299, 320, 342, 480, 518, 800])
def test_the_size_before_the_crop_survives_the_ratio(size, resized):
    if size <= resized:
        assert Views(Policy.parse("rrc"), 0, size, size / resized).resize_size == resized


# Of 160 pixels, most windows lie beside images of 80 to 160: above, below or next to them.
@pytest.mark.parametrize("padding", [20, 160])
@pytest.mark.parametrize("view", [0, 1, 2])
def test_a_jpegs_padding_is_black(make_reader, photo_beton, view, padding):
    reader = make_reader(photo_beton, f"pad-crop({padding}, flip)", 32)
    assert np.array_equal(read_all(reader, view)[0], views_of(reader, view))


@pytest.mark.parametrize("policy", ["rrc", "pad-crop(9, flip)"])
def test_several_views_of_one_decoding_are_those_of_one_each(make_reader, photo_beton, policy):
    for decode_mode in ("full", "scaled"):
        reader = make_reader(photo_beton, policy, 24, decode=decode_mode)
        several = PixelReader(
            reader.beton, reader.views, batch_size=24, num_workers=2, views_per_sample=4
        )
        (batches,) = several.read_views([np.arange(24)], VIEWS)
        for view, batch in zip(VIEWS, batches, strict=True):
            images = batch.images.permute(0, 2, 3, 1).numpy()
            assert np.array_equal(images, read_all(reader, view)[0])


def test_rows_are_cut_out_of_a_jpeg_with_one_scan_alone(photo_beton):
    content = stored_bytes(open_beton(photo_beton), 0)
    scan = bytes(content).index(b"\xff\xda")
    room = np.empty_like(content)
    written, first, held = cut_rows(content, 32, 40, room)
    assert (first <= 24, first + held >= 48, 0 < written < len(content)) == (True, True, True)
    with Image.open(io.BytesIO(content)) as whole, Image.open(io.BytesIO(room[:written])) as part:
        rows = np.asarray(part)[32 - first : 40 - first]
        assert np.array_equal(rows, np.asarray(whole)[32:40])
    content[scan + 4] -= 1  # its components in scans of their own lie one after the other
    assert cut_rows(content, 32, 40, room) == (0, 0, 0)


@pytest.mark.parametrize("definition", ["pillow", "planes"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"keep_rgb": True}], ids=str)
def test_fill_bytes_before_a_jpegs_markers_are_passed_over(tmp_path, options, definition):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8))
    file = io.BytesIO()
    image.resize((90, 70)).save(file, "JPEG", **options)
    content = file.getvalue()
    frame = content.index(b"\xff\xc2" if "progressive" in options else b"\xff\xc0")
    filled = content[:frame] + b"\xff\xff" + content[frame:]
    for name, stored in (("plain", content), ("filled", filled)):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "image.jpg").write_bytes(stored)
    pack(PackOptions(str(tmp_path / "images"), workspace=tmp_path, val_fraction=0))
    beton = open_beton(tmp_path / "train.beton")
    first, second = beton.pixels([0, 1], 1, "rrc", 48, definition=definition)
    assert np.array_equal(first, second)
