from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kdcache.data.jpeg_library import address_of, new_decoder
from kdcache.data.views import Placement
from kdcache.reader.array_pixels import (
    planes_of_rgb_array,
    render_array,
    render_planes_array,
    rgb_of_planes_array,
)
from kdcache.reader.planes import convert_to_rgb, decode_planes, planes_bytes, planes_of_rgb
from tests.reader.reference import decode, places_of, read_all, stored_bytes

DECODER = new_decoder()
FUNCTIONS = np.array([address_of("tjDecompress2"), address_of("tjDecompressToYUVPlanes")])


def planes_of(content, height, width):
    """Return the planes that the reader decodes: (H, W), and two of half the size."""
    decoded = np.full(planes_bytes(height, width), 99, dtype=np.uint8)
    table = np.empty(8, dtype=np.int64)
    content = np.frombuffer(bytearray(content), dtype=np.uint8)
    status, pitch, *starts = decode_planes(
        content, height, width, 1, DECODER, FUNCTIONS, table, decoded
    )
    assert status == 0
    luma = decoded[: pitch * height].reshape(height, pitch)[:, :width]
    half = ((height + 1) // 2, (width + 1) // 2)
    return luma, *(decoded[at : at + half[0] * half[1]].reshape(half) for at in starts)


def smooth(height, width, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encode(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def ycbcr(content):
    """Return what Pillow decodes without converting the colours: luma, and chroma per pixel."""
    with Image.open(io.BytesIO(content)) as image:
        image.draft("YCbCr", image.size)
        assert image.mode == "YCbCr"
        return np.moveaxis(np.asarray(image), -1, 0)


def halved(chroma):
    """Return the means of 2 x 2 pixels; the last row and column count twice where it is odd."""
    height, width = chroma.shape
    even = np.pad(chroma.astype(int), [(0, height % 2), (0, width % 2)], mode="edge")
    return (even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2).sum(axis=(1, 3)) + 2) // 4


def upsampled(chroma, height, width):
    """Upsample as libjpeg does: each pixel is 3/4 of its own sample and 1/4 of the next."""
    rows = np.pad(chroma.astype(int), [(1, 1), (0, 0)], mode="edge")
    near, far = np.repeat(rows[1:-1], 2, axis=0), np.empty((2 * len(chroma), chroma.shape[1]), int)
    far[::2], far[1::2] = rows[:-2], rows[2:]
    columns = 3 * near + far
    wide = np.pad(columns, [(0, 0), (1, 1)], mode="edge")
    output = np.empty((columns.shape[0], 2 * columns.shape[1]), int)
    output[:, ::2] = (3 * wide[:, 1:-1] + wide[:, :-2] + 8) >> 4
    output[:, 1::2] = (3 * wide[:, 1:-1] + wide[:, 2:] + 7) >> 4
    output[:, 0], output[:, -1] = (4 * columns[:, 0] + 8) >> 4, (4 * columns[:, -1] + 7) >> 4
    return output[:height, :width]


SIDES = [(64, 96), (63, 97), (33, 34), (2, 2), (1, 9), (9, 1), (1, 1)]


@pytest.mark.parametrize(("height", "width"), SIDES)
def test_a_jpeg_with_halved_chroma_gives_its_own_planes(height, width):
    content = encode(smooth(height, width), subsampling="4:2:0", quality=95)
    luma, *chroma = planes_of(content, height, width)
    expected = ycbcr(content)
    assert np.array_equal(luma, expected[0])
    if min(height, width) > 2:  # libjpeg has another rule for images of one or two samples
        for plane, whole in zip(chroma, expected[1:], strict=True):
            assert np.array_equal(upsampled(plane, height, width), whole)


@pytest.mark.parametrize(("height", "width"), SIDES)
def test_full_chroma_is_averaged_to_half(height, width):
    content = encode(smooth(height, width), subsampling="4:4:4", quality=95)
    expected = ycbcr(content)
    luma, *chroma = planes_of(content, height, width)
    assert np.array_equal(luma, expected[0])
    for plane, whole in zip(chroma, expected[1:], strict=True):
        assert np.array_equal(plane, halved(whole))


@pytest.mark.parametrize(("height", "width"), SIDES)
def test_chroma_that_is_halved_in_one_direction_is_averaged_in_the_other(height, width):
    # Chroma that is the same in each row has the same samples, whatever the vertical factor.
    row = np.asarray(smooth(1, width))
    image = Image.fromarray(np.repeat(row, height, axis=0))
    both, one = (encode(image, subsampling=kind, quality=100) for kind in ("4:2:0", "4:2:2"))
    for found, expected in zip(
        planes_of(one, height, width), planes_of(both, height, width), strict=True
    ):
        assert abs(found.astype(int) - expected).max() <= 1


def test_a_grey_jpeg_has_neutral_chroma():
    content = encode(smooth(21, 35).convert("L"))
    luma, *chroma = planes_of(content, 21, 35)
    with Image.open(io.BytesIO(content)) as image:
        assert np.array_equal(luma, np.asarray(image))
    assert all((plane == 128).all() for plane in chroma)


def test_a_jpeg_in_rgb_is_converted():
    # Pillow keeps RGB if it is told so; the file has an Adobe marker and no JFIF header.
    content = encode(smooth(40, 56), keep_rgb=True, quality=95)
    assert b"JFIF" not in content
    with Image.open(io.BytesIO(content)) as image:
        rgb = np.asarray(image)
    for found, expected in zip(planes_of(content, 40, 56), planes_of_rgb_array(rgb), strict=True):
        assert np.array_equal(found, expected)


@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32))
@settings(deadline=None, max_examples=100)
def test_pixels_are_converted_with_libjpegs_integers(height, width, seed):
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    planes = np.zeros(planes_bytes(height, width), dtype=np.uint8)
    first, second = planes_of_rgb(rgb, planes)
    half = ((height + 1) // 2, (width + 1) // 2)
    chroma = [planes[at : at + half[0] * half[1]].reshape(half) for at in (first, second)]
    pillows = np.moveaxis(np.asarray(Image.fromarray(rgb).convert("YCbCr")), -1, 0).astype(int)
    luma = planes[: height * width].reshape(height, width)
    assert abs(luma - pillows[0]).max() <= 1  # Pillow has a table of its own
    for arrays in (planes_of_rgb_array(rgb), planes_of_rgb_array(torch.from_numpy(rgb))):
        for found, expected in zip((luma, *chroma), arrays, strict=True):
            assert np.array_equal(found, np.asarray(expected))
    for plane, whole in zip(chroma, pillows[1:], strict=True):
        assert abs(plane - halved(whole)).max() <= 1


@pytest.mark.parametrize("side", [1, 5, 6, 31, 32, 33, 64])
def test_planes_are_converted_back_with_libjpegs_integers(side):
    planes = np.random.default_rng(side).integers(0, 256, (3, side, side, 1), dtype=np.uint8)
    planes.reshape(-1)[:2] = 0, 255
    output = np.full((side, side, 3), 7, dtype=np.uint8)
    convert_to_rgb(planes, output)
    luma, blue, red = planes[..., 0].astype(int)
    # JFIF, with factors of 16 fractional bits.
    exact = np.stack(
        [
            luma + ((91881 * (red - 128) + 32768) >> 16),
            luma + ((-22554 * (blue - 128) - 46802 * (red - 128) + 32768) >> 16),
            luma + ((116130 * (blue - 128) + 32768) >> 16),
        ],
        axis=-1,
    ).clip(0, 255)
    assert np.array_equal(output, exact)
    assert np.array_equal(output, rgb_of_planes_array(*planes[..., 0]))
    jfif = luma + 1.402 * (red - 128)
    assert abs(output[..., 0] - jfif.clip(0, 255)).max() <= 0.51


@pytest.mark.parametrize("view", [0, 1, 2])
@pytest.mark.parametrize("policy", ["rrc", "rrc(filter=bicubic)", "pad-crop(9, flip)"])
def test_a_view_of_raw_pixels_is_the_one_in_array_arithmetic(
    make_reader, mixed_beton, policy, view
):
    reader = make_reader(mixed_beton, policy, 24, definition="planes")
    found = read_all(reader, view)[0]
    for position, place in enumerate(places_of(reader, view)):
        image = decode(reader.beton, position)
        assert np.array_equal(found[position], render_array(image, place, 24, "planes"))
        pixels = torch.from_numpy(image.copy())
        assert np.array_equal(found[position], render_array(pixels, place, 24, "planes"))


@pytest.mark.parametrize("view", [0, 1, 2])
@pytest.mark.parametrize("policy", ["rrc", "pad-crop(20, flip)", "pad-crop(21, flip)"])
def test_a_view_of_a_jpeg_is_the_one_of_its_planes(make_reader, photo_beton, policy, view):
    # The reader decodes some rows only; here are all of them.
    reader = make_reader(photo_beton, policy, 48, definition="planes")
    found = read_all(reader, view)[0]
    for position, place in enumerate(places_of(reader, view)):
        sizes = (int(side) for side in reader.beton.sizes[position])
        planes = planes_of(stored_bytes(reader.beton, position).tobytes(), *sizes)
        expected = render_planes_array(tuple(plane.copy() for plane in planes), place, 48)
        assert np.array_equal(found[position], expected)


def test_planes_and_pixels_look_alike(make_reader, photo_beton):
    found, other = (
        read_all(make_reader(photo_beton, "rrc", 48, definition=definition), 1)[0].astype(int)
        for definition in ("planes", "pillow")
    )
    assert 0 < abs(found - other).mean() < 3


def test_a_window_at_an_edge_is_that_of_the_whole_result():
    image = np.asarray(smooth(40, 60)).copy()
    for definition in ("pillow", "planes"):
        whole = Placement(0, 0, 40, 60, 0, 50, 50, 0, 0, 0)
        expected = render_array(image, whole, 50, definition)
        for top, left in ((0, 0), (0, 30), (30, 0), (30, 30)):
            window = render_array(
                image, whole._replace(window_top=top, window_left=left), 20, definition
            )
            assert np.array_equal(window, expected[top : top + 20, left : left + 20])
