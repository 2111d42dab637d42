from __future__ import annotations

import colorsys
import hashlib
import io

import numpy as np
import pytest
from ffcv.libffcv import imdecode
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from kdcache.data.digests import STORED
from kdcache.data.images import store_image, to_rgb
from kdcache.data.jpeg_library import decode_jpeg
from kdcache.data.restart import add_restart_markers


def noise(*shape, top=256, dtype=np.uint8):
    """Return seeded random values."""
    return np.random.default_rng(0).integers(0, top, shape, dtype=dtype)


GREY = noise(11, 7)
RGB = noise(11, 7, 3)
ORIENTATION = 0x0112


def encode(image, file_format="PNG", **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def ffcv_decode(content, height, width):
    """Return what FFCV's decoder says of a JPEG, 0 is well, and its pixels, which are not exact."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    source = np.frombuffer(content, dtype=np.uint8)
    return imdecode(source, pixels, height, width, height, width), pixels


def pillow_decode(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def stored_pixels(content, max_resolution=None):
    stored = store_image(content, write_mode="raw", max_resolution=max_resolution)
    assert not stored.is_jpeg
    pixels = np.frombuffer(stored.content, dtype=np.uint8)
    return pixels.reshape(stored.height, stored.width, 3)


def photo(width=80, height=60, mode="RGB"):
    """Return a smooth image, as JPEG likes them."""
    coarse = Image.fromarray(noise(5, 5, 3))
    return coarse.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def grey(values):
    return np.repeat(np.asarray(values, dtype=np.uint8)[..., None], 3, axis=2)


def with_alpha(mode):
    """Return an image of `mode` and its colours; the alpha is anything."""
    alpha = Image.fromarray(GREY[::-1].copy())
    image = Image.fromarray(GREY if mode == "LA" else RGB).convert(mode)
    image.putalpha(alpha)
    return image


def palette_image():
    palette = noise(256, 3)
    image = Image.frombytes("P", GREY.shape[::-1], GREY.tobytes())
    image.putpalette(palette.tobytes())
    return image, palette[GREY]


def wide_grey(mode):
    values = noise(*GREY.shape, top=2**16, dtype=np.uint16)
    return Image.fromarray(values.astype(np.int32) if mode == "I" else values), grey(values >> 8)


# --- every mode that Pillow reads ---


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_black_and_white_becomes_0_and_255(file_format):
    image = Image.fromarray(GREY > 127)
    assert image.mode == "1"
    assert np.array_equal(stored_pixels(encode(image, file_format)), grey((GREY > 127) * 255))


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "BMP", "PPM"])
def test_grey_is_repeated(file_format):
    content = encode(Image.fromarray(GREY), file_format)
    assert np.array_equal(stored_pixels(content), grey(GREY))


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "BMP", "PPM"])
def test_rgb_is_kept(file_format):
    assert np.array_equal(stored_pixels(encode(Image.fromarray(RGB), file_format)), RGB)


@pytest.mark.parametrize(("mode", "expected"), [("LA", grey(GREY)), ("RGBA", RGB)])
def test_alpha_is_dropped(mode, expected):
    image = with_alpha(mode)
    assert image.mode == mode
    assert np.array_equal(stored_pixels(encode(image)), expected)


@pytest.mark.parametrize("file_format", ["PNG", "GIF", "TIFF"])
def test_a_palette_is_looked_up(file_format):
    image, expected = palette_image()
    assert np.array_equal(stored_pixels(encode(image, file_format)), expected)


@pytest.mark.parametrize("transparency", [3, bytes(range(256))], ids=["one", "each"])
def test_transparency_of_a_palette_is_dropped_without_a_word(transparency):
    image, expected = palette_image()
    content = encode(image, transparency=transparency)
    assert Image.open(io.BytesIO(content)).mode == "P"
    assert np.array_equal(stored_pixels(content), expected)


def test_a_palette_with_alpha_is_looked_up():
    image, expected = palette_image()
    image.putalpha(77)
    assert image.mode == "PA"
    assert np.array_equal(np.asarray(to_rgb(image)), expected)


@pytest.mark.parametrize(
    ("mode", "file_format"), [("I;16", "PNG"), ("I;16", "TIFF"), ("I", "TIFF"), ("I", "PPM")]
)
def test_16_bit_grey_keeps_its_upper_byte(mode, file_format):
    image, expected = wide_grey(mode)
    assert image.mode == mode
    assert np.array_equal(stored_pixels(encode(image, file_format)), expected)


def test_16_bit_grey_of_the_other_byte_order_keeps_its_upper_byte():
    image, expected = wide_grey("I;16")
    swapped = np.asarray(image).byteswap().tobytes()
    image = Image.frombytes("I;16B", image.size, swapped)
    assert np.array_equal(np.asarray(to_rgb(image)), expected)


def test_32_bit_grey_beyond_16_bits_is_clipped():
    values = np.array([[-5, 0, 255, 256, 65535, 65536, 2**31 - 1]], dtype=np.int32)
    pixels = stored_pixels(encode(Image.fromarray(values), "TIFF"))
    assert pixels[0, :, 0].tolist() == [0, 0, 0, 1, 255, 255, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.25, 0.5, 0.998, 1.0], [0, 64, 128, 254, 255]),
        ([0.0, 1.0, 1.5, 200.4, 255.0], [0, 1, 2, 200, 255]),
        ([0.0, 0.0], [0, 0]),
        ([1.0, 1.0], [255, 255]),
    ],
    ids=["of 1", "of 255", "black", "white"],
)
def test_floating_point_grey_is_a_share_of_1_or_of_255(values, expected):
    image = Image.fromarray(np.array([values], dtype=np.float32))
    assert image.mode == "F"
    assert np.array_equal(stored_pixels(encode(image, "TIFF")), grey([expected]))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([-0.5, 1.0], "from -0.5 to 1,"),
        ([0.0, 255.5], "from 0 to 255.5,"),
        ([0.0, 65535.0], "to 65535,"),
        ([0.5, np.nan], "to nan,"),
        ([0.5, np.inf], "to inf,"),
    ],
    ids=str,
)
def test_floating_point_grey_of_another_scale_is_refused(values, told):
    content = encode(Image.fromarray(np.array([values], dtype=np.float32)), "TIFF")
    with pytest.raises(ValueError, match=told):
        stored_pixels(content)


def test_cmyk_is_ink_on_white():
    inks = noise(11, 7, 4)
    image = Image.frombytes("CMYK", (7, 11), inks.tobytes())
    white = 255 - inks.astype(float)
    expected = white[..., :3] * white[..., 3:] / 255
    # Pillow rounds in integers.
    assert abs(stored_pixels(encode(image, "TIFF")) - expected).max() <= 1


def test_cmyk_in_a_jpeg_is_inverted_as_adobe_writes_it():
    inks = np.asarray(photo(mode="CMYK")).copy()
    inks[..., 3] = 40
    content = encode(Image.frombytes("CMYK", (80, 60), inks.tobytes()), "JPEG", quality=100)
    assert b"Adobe" in content
    white = 255 - inks.astype(float)
    expected = white[..., :3] * white[..., 3:] / 255
    # JPEG of quality 100 on a smooth image.
    assert abs(stored_pixels(content) - expected).mean() < 1.5


def test_ycbcr_becomes_rgb_as_in_jpeg():
    image = Image.frombytes("YCbCr", (7, 11), RGB.tobytes())
    y, cb, cr = np.moveaxis(RGB.astype(float), 2, 0)
    cb, cr = cb - 128, cr - 128
    expected = [y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb]
    expected = np.stack(expected, axis=2).clip(0, 255)
    # Pillow rounds in integers.
    assert abs(np.asarray(to_rgb(image)) - expected).max() <= 1.01


def test_hsv_becomes_rgb():
    image = Image.frombytes("HSV", (7, 11), RGB.tobytes())
    expected = [colorsys.hsv_to_rgb(*pixel) for pixel in RGB.reshape(-1, 3) / 255]
    # Pillow's hue has 256 steps, of which six sectors are cut.
    difference = np.asarray(to_rgb(image)).reshape(-1, 3) - np.array(expected) * 255
    assert abs(difference).max() <= 3


def test_the_first_frame_of_an_animation_counts():
    frames = [Image.fromarray(grey(np.full((5, 5), value))) for value in (10, 200)]
    content = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (stored_pixels(content) == 10).all()


# --- which way is up ---

TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def exif(orientation):
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_the_exif_orientation_is_applied(orientation, file_format):
    image = Image.fromarray(RGB)
    upright = stored_pixels(encode(image, file_format))
    content = encode(image, file_format, exif=exif(orientation))
    assert np.array_equal(stored_pixels(content), TURNS[orientation](upright))


def test_a_turned_jpeg_is_encoded_again_and_says_no_more_that_it_is_turned():
    image = photo(80, 60)
    content = encode(image, "JPEG", exif=exif(6))
    stored = store_image(content, write_mode="jpg", max_resolution=None)
    assert (stored.height, stored.width) == (80, 60)
    again = Image.open(io.BytesIO(stored.content))
    assert again.getexif().get(ORIENTATION, 1) == 1
    expected = np.rot90(np.asarray(Image.open(io.BytesIO(content))), -1)
    # Quality 90, twice: small differences everywhere, nothing is displaced.
    assert abs(np.asarray(again).astype(int) - expected).mean() < 3


def test_exif_data_that_cannot_be_read_turn_nothing():
    upright = encode(Image.fromarray(RGB))
    damaged = encode(Image.fromarray(RGB), exif=b"Exif\0\0not exif at all")
    assert np.array_equal(stored_pixels(damaged), stored_pixels(upright))


# --- JPEG ---


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="usual"),
        pytest.param({"quality": 30, "subsampling": 2}, id="coarse"),
        pytest.param({"quality": 95, "subsampling": 0}, id="fine"),
        pytest.param({"optimize": True}, id="optimised"),
        pytest.param({"progressive": True}, id="progressive"),
        pytest.param({"restart_marker_blocks": 3}, id="with restarts"),
        pytest.param({"exif": exif(1)}, id="upright"),
        pytest.param({"exif": exif(0)}, id="of unknown orientation"),
        pytest.param({"exif": b"Exif\0\0not exif at all"}, id="damaged EXIF"),
        pytest.param({"icc_profile": b"any"}, id="with a profile"),
    ],
)
@pytest.mark.parametrize("max_resolution", [None, 80, 81])
def test_a_jpeg_that_needs_no_change_keeps_its_pixels(options, max_resolution):
    content = encode(photo(80, 60), "JPEG", **options)
    stored = store_image(content, write_mode="jpg", max_resolution=max_resolution)
    assert (stored.is_jpeg, stored.height, stored.width) == (True, 60, 80)
    status, pixels = ffcv_decode(stored.content, 60, 80)
    assert status == 0
    assert np.array_equal(pixels, ffcv_decode(content, 60, 80)[1])
    decoded = [np.asarray(Image.open(io.BytesIO(file))) for file in (stored.content, content)]
    assert np.array_equal(*decoded)


@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    quality=st.integers(5, 100),
    subsampling=st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
    mode=st.sampled_from(["RGB", "L"]),
    smooth=st.booleans(),
    progressive=st.booleans(),
)
@settings(deadline=None, max_examples=200)
def test_a_jpeg_of_any_size_keeps_the_pixels_that_pillow_decodes(
    width, height, quality, subsampling, mode, smooth, progressive
):
    image = photo(width, height) if smooth else Image.fromarray(noise(height, width, 3))
    content = encode(
        image.convert(mode),
        "JPEG",
        quality=quality,
        subsampling=subsampling,
        progressive=progressive,
    )
    stored = store_image(content, write_mode="jpg", max_resolution=None)
    expected = pillow_decode(content)
    assert np.array_equal(decode_jpeg(stored.content, height, width), expected)
    assert np.array_equal(decode_jpeg(content, height, width), expected)
    assert ffcv_decode(stored.content, height, width)[0] == 0


@pytest.mark.parametrize(
    "content",
    [
        encode(photo(mode="CMYK"), "JPEG"),
        encode(photo(), "PNG"),
        encode(photo(mode="RGBA"), "PNG"),
    ],
    ids=["CMYK JPEG", "PNG", "PNG with alpha"],
)
def test_anything_else_becomes_an_rgb_jpeg(content):
    stored = store_image(content, write_mode="jpg", max_resolution=None)
    image = Image.open(io.BytesIO(stored.content))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (80, 60))
    expected = Image.open(io.BytesIO(content)).convert("RGB")
    # Quality 90 on a smooth image.
    assert abs(np.asarray(image).astype(int) - np.asarray(expected)).mean() < 3


@pytest.mark.parametrize("place", ["before its end", "before its scan"])
def test_a_jpeg_that_libjpeg_grumbles_at_is_encoded_again(place):
    # Pillow says nothing of bytes between markers; the reader's decoder takes them for damage.
    content = encode(photo(80, 60), "JPEG")
    marker = b"\xff\xd9" if place == "before its end" else b"\xff\xda"
    at = content.rindex(marker)
    grumbling = content[:at] + bytes(range(1, 41)) + content[at:]
    stored = store_image(grumbling, write_mode="jpg", max_resolution=None)
    assert stored.content != grumbling
    assert ffcv_decode(grumbling, 60, 80)[0] != 0
    assert ffcv_decode(stored.content, 60, 80)[0] == 0
    expected = np.asarray(Image.open(io.BytesIO(content))).astype(int)
    assert abs(np.asarray(Image.open(io.BytesIO(stored.content))) - expected).mean() < 3


@pytest.mark.parametrize("write_mode", ["raw", "jpg"])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.95])
def test_a_truncated_file_is_refused(write_mode, file_format, kept):
    content = encode(photo(), file_format)
    with pytest.raises((OSError, SyntaxError)):
        store_image(content[: int(kept * len(content))], write_mode=write_mode, max_resolution=None)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "the file is empty"),
        (bytes(1000), "it contains only zeros"),
        (b"no image", "it is none of JPEG, PNG, "),
        (b"\n<!DOCTYPE html><title>404 Not Found", "it is a web page or other text"),
        (b"<html><body>moved</body></html>", "it is a web page or other text"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is none of JPEG, PNG, "),
        (encode(photo(), "JPEG")[:3], "its header is damaged"),
    ],
    ids=["empty", "zeros", "text", "a page", "another page", "EPS", "three bytes"],
)
def test_a_file_that_is_no_image_is_refused_with_what_it_is(content, told):
    with pytest.raises(ValueError, match=told):
        store_image(content, write_mode="raw", max_resolution=None)


@pytest.mark.parametrize(
    "file_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF"]
)
def test_what_a_file_holds_decides_and_not_its_name(file_format):
    # A source hands over bytes alone, so a PNG that is called .jpg is as good as any.
    content = encode(photo(), file_format)
    pixels = stored_pixels(content)
    assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


def test_a_colour_profile_changes_no_pixel():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    content = encode(Image.fromarray(RGB), icc_profile=profile)
    assert "icc_profile" in Image.open(io.BytesIO(content)).info
    assert np.array_equal(stored_pixels(content), RGB)


def test_of_several_photos_in_one_file_the_first_keeps_its_pixels():
    # Telephones write such files (MPO): a JPEG with its preview or another frame behind it.
    image, other = photo(80, 60), photo(80, 60).rotate(180)
    file = io.BytesIO()
    image.save(file, "MPO", save_all=True, append_images=[other], quality=60)
    assert Image.open(io.BytesIO(file.getvalue())).format == "MPO"
    stored = store_image(file.getvalue(), write_mode="jpg", max_resolution=None)
    status, pixels = ffcv_decode(stored.content, 60, 80)
    assert status == 0
    assert np.array_equal(pixels, ffcv_decode(encode(image, "JPEG", quality=60), 60, 80)[1])
    assert len(stored.content) < 0.7 * len(file.getvalue())


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 700)], ids=str)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_images_of_any_shape_are_stored_whole(size, file_format):
    content = encode(photo(*size), file_format)
    raw = stored_pixels(content)
    assert raw.shape == (size[1], size[0], 3)
    assert np.array_equal(raw, np.asarray(Image.open(io.BytesIO(content))))
    stored = store_image(content, write_mode="jpg", max_resolution=None)
    status, pixels = ffcv_decode(stored.content, size[1], size[0])
    assert status == 0
    if file_format == "JPEG":
        assert np.array_equal(pixels, ffcv_decode(content, size[1], size[0])[1])


# --- sizes ---


@pytest.mark.parametrize(
    ("size", "limit", "expected"),
    [
        ((80, 60), 80, (80, 60)),
        ((80, 60), 40, (40, 30)),
        ((60, 80), 40, (30, 40)),
        ((80, 2), 10, (10, 1)),
        ((20, 10), 40, (20, 10)),
    ],
    ids=str,
)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_the_longer_side_is_at_most_the_maximum(size, limit, expected, file_format):
    content = encode(photo(*size), file_format)
    for write_mode in ("raw", "jpg"):
        stored = store_image(content, write_mode=write_mode, max_resolution=limit)
        assert (stored.width, stored.height) == expected


def test_a_shrunken_image_is_the_image_made_smaller():
    image = photo(80, 60)
    expected = image.resize((40, 30), Image.Resampling.BICUBIC)
    assert np.array_equal(stored_pixels(encode(image), max_resolution=40), np.asarray(expected))


def test_the_maximum_applies_to_the_upright_image():
    stored = store_image(encode(photo(80, 60), exif=exif(6)), write_mode="raw", max_resolution=40)
    assert (stored.width, stored.height) == (30, 40)


@pytest.mark.parametrize(("side", "expected"), [(2**16 - 1, 2**16 - 1), (2**16, 2**16 - 1)])
@pytest.mark.parametrize("limit", [None, 10**6])
def test_no_side_is_longer_than_the_format_can_say(side, expected, limit):
    content = encode(Image.new("RGB", (side, 1)))
    stored = store_image(content, write_mode="raw", max_resolution=limit)
    assert (stored.width, stored.height) == (expected, 1)


# --- what goes along ---


@pytest.mark.parametrize("write_mode", ["raw", "jpg"])
def test_the_digest_is_of_the_stored_bytes(write_mode):
    stored = store_image(encode(photo()), write_mode=write_mode, max_resolution=None)
    digest = hashlib.blake2b(stored.content, digest_size=16).digest()
    assert stored.digests[STORED].tobytes() == digest


def test_channel_sums_are_sums_and_sums_of_squares():
    stored = store_image(encode(Image.fromarray(RGB)), write_mode="raw", max_resolution=None)
    values = RGB.reshape(-1, 3).astype(np.int64)
    expected = np.stack([values.sum(axis=0), (values**2).sum(axis=0)], axis=1)
    assert np.array_equal(stored.channel_sums, expected)


def test_a_jpeg_whose_table_has_more_codes_than_symbols_gets_no_markers():
    content = encode(photo(80, 60), "JPEG")
    assert add_restart_markers(content) is not None
    table = content.rindex(b"\xff\xc4")
    length_16 = table + 5 + 15  # after the marker, the length and the table's name
    more = content[length_16] + 5
    assert (
        add_restart_markers(content[:length_16] + bytes([more]) + content[length_16 + 1 :]) is None
    )
