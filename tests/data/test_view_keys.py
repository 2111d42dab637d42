"""A view belongs to the image, not to its number: other orders, names, parts and packings."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdcache.data.beton import Beton, open_beton
from kdcache.data.digests import DECODED, SOURCE, STORED, digest_bytes, digest_pixels, view_keys
from kdcache.data.names import load_names
from kdcache.data.pack import pack
from kdcache.data.repack import repack
from kdcache.options import PackOptions
from kdcache.reader.batches import view_pixels

CHANGING = "rrc(brightness=0.4, saturation=0.4, erase=0.5)"


def packed(source: Path, workspace: Path, **options) -> Beton:
    result = pack(PackOptions(str(source), workspace=workspace, val_fraction=0, **options))
    return result.train


def reordered(source: Path, target: Path) -> Path:
    """Copy an image folder under other file names, in the opposite order."""
    for folder in source.iterdir():
        (target / folder.name).mkdir(parents=True)
        for number, file in enumerate(sorted(folder.iterdir(), reverse=True)):
            shutil.copy(file, target / folder.name / f"other{number:05}{file.suffix}")
    return target


def by_image(beton: Beton) -> dict[bytes, int]:
    """Return the sample id of each image, by the digest of its decoded pixels."""
    decoded = beton.digests()[:, DECODED]
    return {decoded[at].tobytes(): int(beton.sample_ids[at]) for at in range(len(beton))}


@pytest.fixture(scope="module")
def photos(photo_folder, tmp_path_factory) -> tuple[Beton, Beton]:
    """The same photos, packed in two orders."""
    folder = tmp_path_factory.mktemp("orders")
    other = reordered(photo_folder, folder / "reordered")
    return packed(photo_folder, folder / "a"), packed(other, folder / "b")


@pytest.mark.parametrize("view", [0, 1, 5])
@pytest.mark.parametrize("policy", ["rrc", CHANGING, "pad-crop(4, flip)"])
def test_an_image_has_the_same_pixels_in_any_order(photos, policy, view):
    first, second = photos
    places, other_places = by_image(first), by_image(second)
    assert places.keys() == other_places.keys()
    ids = np.array([places[image] for image in places])
    other_ids = np.array([other_places[image] for image in places])
    assert (ids != other_ids).any()
    pixels = view_pixels(first, policy, 3, view, ids, image_size=48)
    np.testing.assert_array_equal(
        view_pixels(second, policy, 3, view, other_ids, image_size=48), pixels
    )


def test_the_fingerprint_tells_orders_apart_but_not_packings(photos, tmp_path, photo_folder):
    first, second = photos
    assert first.manifest.fingerprint != second.manifest.fingerprint
    again = packed(photo_folder, tmp_path / "again")
    assert again.manifest.fingerprint == first.manifest.fingerprint


def test_images_that_are_stored_otherwise_and_decode_alike_are_the_same_data(tmp_path):
    """A PNG and a BMP of the same pixels."""
    rng = np.random.default_rng(0)
    for number in range(6):
        image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        for kind in ("png", "bmp"):
            folder = tmp_path / kind / f"class{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{number}.{kind}")
    png, bmp = (packed(tmp_path / kind, tmp_path / f"w-{kind}") for kind in ("png", "bmp"))
    assert png.manifest.fingerprint == bmp.manifest.fingerprint
    assert np.array_equal(png.view_keys, bmp.view_keys)
    assert (png.digests()[:, SOURCE] != bmp.digests()[:, SOURCE]).any()


def test_a_part_of_the_data_shows_the_same_views(photos, tmp_path):
    full, _ = photos
    ids = np.array([1, 4, 5, 20])
    repack(full, ids, tmp_path / "part.beton")
    part = open_beton(tmp_path / "part.beton")
    assert np.array_equal(part.view_keys, full.view_keys[ids])
    for view in (0, 2):
        np.testing.assert_array_equal(
            view_pixels(part, "rrc", 0, view, ids, image_size=32),
            view_pixels(full, "rrc", 0, view, ids, image_size=32),
        )
    names = load_names(full.path, full.manifest)
    assert load_names(part.path, part.manifest) == [names[sample_id] for sample_id in ids]


def test_copies_of_an_image_share_their_views(tiny_folder, tmp_path):
    source = Path(shutil.copytree(tiny_folder, tmp_path / "s"))
    original = min((source / "class_0").iterdir())
    shutil.copy(original, source / "class_2" / "copy.png")
    beton = packed(source, tmp_path / "w")
    names = load_names(beton.path, beton.manifest)
    first, copy = names.index(str(original)), names.index(str(source / "class_2" / "copy.png"))
    assert beton.view_keys[first] == beton.view_keys[copy]
    assert beton.labels[first] != beton.labels[copy]
    for view in range(6):
        one, other = view_pixels(beton, "pad-crop(4, flip)", 0, view, [first, copy])
        np.testing.assert_array_equal(one, other)
    assert len(np.unique(beton.view_keys)) == len(beton) - 1


def test_the_digests_are_those_of_the_file_the_pixels_and_the_stored_bytes(tmp_path):
    folder = tmp_path / "s" / "c"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    beton = packed(tmp_path / "s", tmp_path / "w")
    source, decoded, stored = beton.digests()[0]
    assert source.tobytes() == digest_bytes((folder / "a.png").read_bytes())
    assert decoded.tobytes() == digest_pixels(20, 30, pixels.tobytes())
    assert stored.tobytes() == digest_bytes(pixels.tobytes())
    assert beton.view_keys[0] == int.from_bytes(decoded.tobytes()[:8], "little")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_the_decoded_digest_is_of_what_the_reader_decodes(tmp_path, suffix):
    """Of a JPEG that is kept, and of one that kdcache encodes."""
    rng = np.random.default_rng(2)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    folder = tmp_path / "s" / "c"
    folder.mkdir(parents=True)
    coarse.resize((96, 96)).save(folder / f"a.{suffix}")
    beton = packed(tmp_path / "s", tmp_path / "w", write_mode="jpg")
    (seen,) = view_pixels(beton, "clean", 0, 0, [0], image_size=96, center_crop_ratio=1.0)
    digest = digest_pixels(96, 96, np.ascontiguousarray(seen).tobytes())
    assert beton.digests()[0, DECODED].tobytes() == digest
    assert beton.digests()[0, STORED].tobytes() != beton.digests()[0, SOURCE].tobytes()


def test_pixels_of_another_shape_have_another_digest():
    assert digest_pixels(2, 6, bytes(36)) != digest_pixels(6, 2, bytes(36))


def test_a_view_key_is_the_start_of_the_digest_as_a_little_endian_number():
    digests = np.arange(32, dtype=np.uint8).reshape(2, 16)
    assert view_keys(digests).tolist() == [0x0706050403020100, 0x1716151413121110]
    assert view_keys(digests).dtype == np.uint64
