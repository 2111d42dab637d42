from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torchvision.transforms.v2 import functional

from kdcache.data.photometric_parameters import photometric_parameters
from kdcache.reader.batches import PixelReader, view_pixels
from kdcache.reader.photometric_kernels import apply_change
from tests.reader.reference import read_all

PLAIN = {"crop": "pad-crop(4, flip)", "photo": "rrc"}
CHANGES = "brightness=0.6, contrast=0.6, saturation=0.6, erase=0.5"
CHANGED = {
    "crop": f"pad-crop(4, flip, {CHANGES})",
    "photo": f"rrc({CHANGES})",
}
IMAGE_SIZE = {"crop": 32, "photo": 12}
NOTHING = (256, 256, 256, 0, 0, 0, 0)


@pytest.fixture(params=["crop", "photo"])
def readers(request, make_reader, tiny_beton, photo_beton):
    """A reader of changed views and one of the same views without changes."""
    beton = {"crop": tiny_beton, "photo": photo_beton}[request.param]
    size = IMAGE_SIZE[request.param]
    return [make_reader(beton, policies[request.param], size) for policies in (CHANGED, PLAIN)]


def changed(image, change):
    """Change (S, S, 3) pixels: whole arrays of Python's own integers, Pillow's greys."""

    def blend(base, values, factor):
        mixed = (base * (256 - factor) + values * factor + 128) // 256
        return np.clip(mixed, 0, 255)

    brightness, contrast, saturation, top, left, height, width = (int(number) for number in change)
    greys = np.asarray(Image.fromarray(image).convert("L")).astype(object)
    mean = (2 * greys.sum() + greys.size) // (2 * greys.size)
    values = blend(0, image.astype(object), brightness)
    values = blend(blend(0, mean, brightness), values, contrast).astype(np.uint8)
    greys = np.asarray(Image.fromarray(values).convert("L")).astype(object)[:, :, None]
    values = blend(greys, values.astype(object), saturation).astype(np.uint8)
    values[top : top + height, left : left + width] = 0
    return values


def applied(image, change):
    """Change a copy of the pixels with the compiled code."""
    copy = np.array(image, order="C")
    apply_change(copy, tuple(np.int64(number) for number in change))
    return copy


@pytest.fixture(scope="module")
def image():
    """64 x 64 pixels of every value and colour, none of them at the ends of the scale."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(40, 180, size=(8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((64, 64), Image.Resampling.BILINEAR))


# --- the whole ---


@pytest.mark.parametrize("view", [0, 1, 3])
def test_changed_views_are_the_plain_views_changed(readers, view):
    with_changes, _ = readers
    policy, seed, size = with_changes.views[:3]
    found, expected = (read_all(reader, view)[0] for reader in readers)
    changes = photometric_parameters(policy, seed, view, with_changes.beton.view_keys, size)
    expected = [changed(*pair) for pair in zip(expected, changes, strict=True)]
    assert np.array_equal(found, expected)
    assert (changes[:, :3] != 256).any(axis=1).mean() >= 0.9 * (view > 0)
    assert 0.2 * (view > 0) <= (changes[:, 5] > 0).mean() <= 0.8 * (view > 0)


def test_views_decoded_together_are_those_decoded_alone(readers):
    with_changes, _ = readers
    beton, views = with_changes.beton, with_changes.views
    together = PixelReader(beton, views, batch_size=len(beton), views_per_sample=4)
    (batch,) = together.read_views([np.arange(len(beton))], [0, 1, 2, 7])
    for seen, view in zip(batch, [0, 1, 2, 7], strict=True):
        alone = view_pixels(
            beton, views.policy, views.seed, view, beton.sample_ids, image_size=views.image_size
        )
        assert np.array_equal(seen.images.permute(0, 2, 3, 1).numpy(), alone)


def test_the_clean_view_is_the_one_without_changes(readers):
    with_changes, plain = readers
    assert np.array_equal(read_all(with_changes, 0)[0], read_all(plain, 0)[0])


@pytest.mark.parametrize("part", CHANGES.split(", "))
def test_each_change_alone_is_made(make_reader, tiny_beton, crop_reader, part):
    reader = make_reader(tiny_beton, f"pad-crop(4, flip, {part})", 32)
    plain = read_all(crop_reader, 1)[0]
    changes = photometric_parameters(*reader.views[:2], 1, reader.beton.view_keys, 32)
    expected = [changed(*pair) for pair in zip(plain, changes, strict=True)]
    found = read_all(reader, 1)[0]
    assert np.array_equal(found, expected)
    assert (found != plain).any(axis=(1, 2, 3)).mean() > 0.2


# --- the parts, as others make them ---


def test_no_change_changes_nothing(image):
    assert np.array_equal(applied(image, NOTHING), image)


@pytest.mark.parametrize("factor", [0, 77, 128, 255, 257, 300, 512, 2560])
@pytest.mark.parametrize("place", [0, 1, 2], ids=["brightness", "contrast", "saturation"])
def test_a_factor_is_pillows_and_torchvisions(image, place, factor):
    change = list(NOTHING)
    change[place] = factor
    found = applied(image, change).astype(int)
    enhancer = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[place]
    pillows = np.asarray(enhancer(Image.fromarray(image)).enhance(factor / 256)).astype(int)
    adjust = (
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
    )[place]
    tensor = torch.from_numpy(image.copy()).permute(2, 0, 1)
    torchvisions = adjust(tensor, factor / 256).permute(1, 2, 0).numpy().astype(int)
    # Both cut fractions off; torchvision's greys have other fractions, which the factor multiplies.
    assert abs(found - pillows).max() <= 1
    assert abs(found - torchvisions).max() <= 2 + abs(factor / 256 - 1)


def test_the_mean_grey_is_that_of_the_pixels_before_any_change():
    pixel_pair = np.array([[[200, 200, 200], [101, 101, 101]]], dtype=np.uint8)
    # The mean is 150.5, so 151, and twice as bright 255; all contrast gone leaves it alone.
    found = applied(pixel_pair, (512, 0, 256, 0, 0, 0, 0))
    assert found.tolist() == [[[255] * 3] * 2]
    found = applied(pixel_pair, (128, 0, 256, 0, 0, 0, 0))
    assert found.tolist() == [[[76] * 3] * 2]


def test_an_erased_box_is_black_and_the_rest_stays(image):
    found = applied(image, (256, 256, 256, 5, 60, 7, 4))
    assert not found[5:12, 60:64].any()
    outside = np.ones((64, 64), dtype=bool)
    outside[5:12, 60:64] = False
    assert np.array_equal(found[outside], image[outside])
