from __future__ import annotations

import pytest

from kdcache.data.beton import open_beton
from kdcache.data.pack import pack
from kdcache.data.policy import Policy
from kdcache.data.views import Views
from kdcache.options import PackOptions
from kdcache.reader.batches import PixelReader
from tests.conftest import write_images


@pytest.fixture(scope="session")
def mixed_beton(tmp_path_factory):
    """A raw beton of 40 images whose sides are 9 to 60 px."""
    folder = write_images(tmp_path_factory.mktemp("mixed"), count=40, classes=2, sides=(9, 60))
    workspace = tmp_path_factory.mktemp("mixed-workspace")
    pack(PackOptions(str(folder), workspace=workspace, val_fraction=0))
    return workspace / "train.beton"


@pytest.fixture(scope="session")
def make_reader():
    """Return a function that opens a reader, or finds the one opened before: compiling is slow."""
    opened = {}

    def make(beton, policy, image_size, *, seed=5, batch_size=16, num_workers=2, **views):
        key = (beton, policy, image_size, seed, batch_size, num_workers, *views.items())
        if key not in opened:
            given = Views(Policy.parse(policy), seed, image_size, **views)
            opened[key] = PixelReader(
                open_beton(beton), given, batch_size=batch_size, num_workers=num_workers
            )
        return opened[key]

    return make


@pytest.fixture(scope="session")
def crop_reader(make_reader, tiny_beton):
    """A reader of 72 raw images of 32 px, padded by 4 px, cropped and mirrored."""
    return make_reader(tiny_beton, "pad-crop(4, flip)", 32)


@pytest.fixture(scope="session")
def photo_reader(make_reader, photo_beton):
    """A reader of 24 JPEGs of 80 to 160 px, as boxes resized to 12 px."""
    return make_reader(photo_beton, "rrc", 12)
