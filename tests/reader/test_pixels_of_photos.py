"""Real photos: decoding equals Pillow's, and views equal Pillow's and torchvision's."""

from __future__ import annotations

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode, functional

from kdcache.data.beton import open_beton
from kdcache.data.pack import pack
from kdcache.data.policy import Policy
from kdcache.data.views import Placement, Views, view_placements
from kdcache.options import PackOptions
from kdcache.reader.array_pixels import render_array
from kdcache.reader.batches import PixelReader
from tests.conftest import real_data
from tests.reader.reference import decode, resize

pytestmark = pytest.mark.long
NUM_VIEWS = 20


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A beton of 200 photos, and their pixels as Pillow decodes the original files."""
    workspace = tmp_path_factory.mktemp("photos")
    source = real_data("imagenet-photos")
    options = {"val_fraction": 0, "write_mode": "jpg", "classes": 1000}
    pack(PackOptions(str(source), workspace=workspace, **options))
    beton = open_beton(workspace / "train.beton")
    (table,) = source.glob("*.parquet")
    files = pq.read_table(table)["image"].to_pylist()
    images = [np.asarray(Image.open(io.BytesIO(file["bytes"])).convert("RGB")) for file in files]
    # Packing changed no pixel; the reader's decoder is compared through the views.
    assert all(np.array_equal(image, decode(beton, at)) for at, image in enumerate(images))
    return beton, images


@pytest.mark.parametrize("image_size", [224, 128, 64])
def test_boxes_of_photos_are_pillows_and_torchvisions(photos, image_size):
    beton, images = photos
    views = Views(Policy.parse("rrc"), 0, image_size)
    reader = PixelReader(beton, views, batch_size=len(beton), views_per_sample=NUM_VIEWS + 1)
    (seen,) = reader.read_views([np.arange(len(beton))], range(NUM_VIEWS + 1))
    columns_first = 0
    for view, batch in enumerate(seen):
        found = batch.images.permute(0, 2, 3, 1).numpy()
        places = view_placements(views, view, beton.view_keys, beton.sizes)
        for position, numbers in enumerate(places.tolist()):
            place = Placement(*numbers)
            image, pixels = images[position], found[position]
            if view == 0:
                pillow = functional.center_crop(
                    functional.resize(
                        Image.fromarray(image),
                        views.resize_size,
                        InterpolationMode.BILINEAR,
                    ),
                    image_size,
                )
            else:
                pillow = functional.resized_crop(
                    Image.fromarray(image), *place[:4], [image_size, image_size]
                )
            theirs = np.asarray(pillow)[:, ::-1] if place.flip else np.asarray(pillow)
            box = image[place.top : place.top + place.height, place.left : place.left + place.width]
            ours = resize(box, place.resized_height, place.resized_width)
            ours = ours[place.window_top :, place.window_left :][:image_size, :image_size]
            ours = ours[:, ::-1] if place.flip else ours
            assert np.array_equal(pixels, ours)
            difference = abs(pixels.astype(int) - theirs)
            assert difference.max() <= 1
            columns_first += not difference.any()
    # Pillow resizes the rows of some boxes first, where that is less work.
    assert columns_first >= 0.85 * len(beton) * (NUM_VIEWS + 1)


def test_array_arithmetic_gives_the_pixels_of_photos(photos):
    beton, images = photos
    views = Views(Policy.parse("rrc(filter=bicubic)"), 0, 64, clean_filter="bicubic")
    reader = PixelReader(beton, views, batch_size=len(beton), views_per_sample=2)
    (seen,) = reader.read_views([np.arange(len(beton))], range(2))
    for view, batch in enumerate(seen):
        found = batch.images.permute(0, 2, 3, 1).numpy()
        places = view_placements(views, view, beton.view_keys, beton.sizes)
        for position, numbers in enumerate(places.tolist()):
            expected = render_array(images[position], Placement(*numbers), 64, "pillow")
            assert np.array_equal(found[position], expected)
