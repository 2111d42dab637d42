from __future__ import annotations

import hashlib

import numpy as np
import pytest

from kdcache.data.beton import open_beton
from kdcache.data.policy import Policy
from kdcache.data.views import Views
from kdcache.reader.batches import view_pixels
from kdcache.reader.probe import PROBE_VIEWS, probe_ids, probe_pixels

VIEWS = Views(Policy.parse("rrc"), 5, 12)


def test_the_probe_is_of_the_pixels_that_are_read(photo_beton):
    beton = open_beton(photo_beton)
    ids = probe_ids(beton.sample_ids)
    seen = [view_pixels(beton, VIEWS.policy, 5, view, ids, image_size=12) for view in PROBE_VIEWS]
    expected = [
        hashlib.blake2b(of_view[place].tobytes(), digest_size=16).digest()
        for place in range(len(ids))
        for of_view in seen
    ]
    probe = probe_pixels(beton, VIEWS, num_workers=1)
    assert (probe.dtype, probe.shape) == (np.uint8, (16 * len(PROBE_VIEWS), 16))
    assert probe.tobytes() == b"".join(expected)


def test_another_seed_changes_every_view_but_the_clean_one(photo_beton):
    beton = open_beton(photo_beton)
    other = probe_pixels(beton, VIEWS._replace(seed=6))
    same = (other == probe_pixels(beton, VIEWS)).all(axis=1)
    assert same.tolist() == [True, False, False, False] * 16


def test_another_image_size_changes_every_view(photo_beton):
    beton = open_beton(photo_beton)
    other = probe_pixels(beton, VIEWS._replace(image_size=13))
    assert (other != probe_pixels(beton, VIEWS)).any(axis=1).all()


@pytest.mark.parametrize("count", [1, 5, 16, 1000])
def test_the_probed_ids_are_a_few_of_all(count):
    ids = np.arange(count) * 7
    probed = probe_ids(ids)
    assert len(probed) == min(count, 16)
    assert np.isin(probed, ids).all()
    assert (np.diff(probed) > 0).all()
    assert np.array_equal(probed, probe_ids(ids))
