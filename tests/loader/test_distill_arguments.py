"""What a loader yields for each kind of store and subset, and the arguments that it refuses."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from kdcache.data.pack import pack
from kdcache.data.policy import Policy
from kdcache.data.views import Views
from kdcache.errors import CacheMismatchError, ConfigError, DatasetError
from kdcache.loader.distill import DistillLoader
from kdcache.options import PackOptions
from kdcache.reader.batches import view_pixels
from kdcache.selection.subset import Subset
from kdcache.store.logit_store import LogitStore
from tests.conftest import write_images
from tests.loader.test_distill import epochs
from tests.spelled import spelled, write_spelled_store


def test_without_augmented_views_an_epoch_shows_a_fresh_view_with_the_clean_rows(beton, tmp_path):
    clean = write_spelled_store(tmp_path / "clean.zarr", beton, num_views=0)
    loader = DistillLoader(beton, clean, [9, 4, 60, 33], batch_size=2, num_workers=1)
    held = epochs(loader, range(5))
    assert held.views.tolist() == [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5]
    assert np.array_equal(held.logits, spelled(held.sample_ids, 0))
    last = held.views == 5
    expected = view_pixels(beton, beton.manifest.policy, 0, 5, held.sample_ids[last], num_workers=1)
    assert np.array_equal(held.images[last], expected)


def test_fewer_views_than_the_store_holds_are_the_first_ones(beton, tmp_path):
    store = write_spelled_store(tmp_path / "store.zarr", beton, num_views=3)
    ids = [9, 4, 60]
    loader = DistillLoader(beton, store, ids, batch_size=3, num_workers=1, num_views=2)
    held = epochs(loader, range(5))
    assert held.views.tolist() == [1] * 3 + [2] * 3 + [1] * 3 + [2] * 3 + [1] * 3
    for view in (1, 2):
        shown = held.views == view
        assert np.array_equal(held.logits[shown], spelled(held.sample_ids[shown], view))
    loader.close()
    with pytest.raises(ConfigError, match=r"num_views=4: expected at most 3, .*store\.zarr"):
        DistillLoader(beton, store, num_views=4)


def test_of_a_store_with_views_the_clean_rows_alone_can_be_used(beton, tmp_path):
    ids = np.array([2, 9, 40])
    store = write_spelled_store(tmp_path / "store.zarr", beton, num_views=2, sample_ids=ids)
    loader = DistillLoader(beton, store, [9, 4, 60], batch_size=3, num_workers=1, num_views=0)
    held = epochs(loader, range(4))
    assert held.views.tolist() == [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3
    assert np.array_equal(held.logits, spelled(held.sample_ids, 0))
    loader.close()


def test_without_a_store_an_epoch_shows_a_fresh_view_and_no_rows(beton):
    loader = DistillLoader(beton, None, [9, 4, 60], batch_size=3, num_workers=1)
    for epoch in range(5):
        (batch,) = loader.epoch(epoch)
        assert (batch.view, batch.rows, batch.weights) == (1 + epoch, None, None)
    expected = view_pixels(
        beton, beton.manifest.policy, 0, 5, batch.sample_ids.numpy(), num_workers=1
    )
    assert np.array_equal(batch.images.permute(0, 2, 3, 1).numpy(), expected)


def test_without_a_store_views_may_be_given(beton):
    views = Views(Policy.parse("pad-crop(9)"), 7, 16)
    loader = DistillLoader(beton, None, [9, 4, 60], batch_size=3, views=views, num_workers=1)
    (batch,) = loader.epoch(0)
    ids = batch.sample_ids.numpy()
    expected = view_pixels(beton, "pad-crop(9)", 7, 1, ids, image_size=16, num_workers=1)
    assert np.array_equal(batch.images.permute(0, 2, 3, 1).numpy(), expected)


def test_images_are_uint8_and_channels_last(beton, store):
    loader = DistillLoader(beton, store, batch_size=8, num_workers=1)
    batch = next(loader.epoch(0))
    assert (batch.images.dtype, tuple(batch.images.shape)) == (torch.uint8, (8, 3, 32, 32))
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert (batch.labels.dtype, batch.sample_ids.dtype) == (torch.int64, torch.int64)
    loader.close()


@pytest.mark.parametrize(
    "subset",
    [Subset(np.array([3, 8, 40])), [40, 3, 8], range(3, 42, 37), np.array([40, 8], np.int32)],
    ids=["Subset", "list", "range", "int32"],
)
def test_a_subset_may_be_given_in_many_forms(beton, store, subset):
    loader = DistillLoader(str(beton.path), str(store.path), subset)
    given = subset.sample_ids if isinstance(subset, Subset) else subset
    assert loader.sample_ids.tolist() == sorted(given)


def test_left_out_the_subset_is_what_the_store_has_rows_for(beton, tmp_path):
    rows = np.array([2, 3, 50, 71])
    partial = write_spelled_store(tmp_path / "partial.zarr", beton, num_views=2, sample_ids=rows)
    held = epochs(DistillLoader(beton, partial, batch_size=3, num_workers=1), range(2))
    assert sorted(held.sample_ids.tolist()) == sorted([*rows, *rows])
    assert np.array_equal(held.logits, spelled(held.sample_ids, held.views))


def test_a_subset_that_the_store_does_not_cover_is_refused(beton, tmp_path):
    rows = np.array([2, 3, 50, 71])
    partial = write_spelled_store(tmp_path / "partial.zarr", beton, num_views=2, sample_ids=rows)
    with pytest.raises(CacheMismatchError, match=r"2 of 4 samples, the first is 49"):
        DistillLoader(beton, partial, [2, 49, 50, 51])


@pytest.mark.parametrize(
    ("subset", "error", "value"),
    [
        ([3, 1, 3], ConfigError, "3 sample ids of which only 2"),
        ([3, 72], DatasetError, "sample id 72"),
        ([-1, 3], DatasetError, "sample id -1"),
        ([0.5, 3], ConfigError, "float64"),
        ([True, False], ConfigError, "bool"),
        ([], ConfigError, r"shape \(0,\)"),
        ([[1, 2]], ConfigError, r"shape \(1, 2\)"),
    ],
    ids=["twice", "beyond", "negative", "float", "mask", "empty", "table"],
)
@pytest.mark.parametrize("with_store", [True, False], ids=["store", "no store"])
def test_a_subset_of_anything_but_different_ids_is_refused(
    beton, store, subset, error, value, with_store
):
    with pytest.raises(error, match=value):
        DistillLoader(beton, store if with_store else None, subset)


def test_a_store_of_other_data_is_refused(store, tmp_path):
    folder = write_images(tmp_path / "other", count=8, classes=4, sides=(32, 32))
    workspace = tmp_path / "workspace"
    result = pack(
        PackOptions(str(folder), workspace=workspace, val_fraction=0, num_workers=1)
    ).to_json()
    found = store.manifest.data_fingerprint[:12]
    with pytest.raises(CacheMismatchError, match=f"{found}.*{result['fingerprint'][:12]}"):
        DistillLoader(workspace / "train.beton", store)


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"rank": 2, "world_size": 2}, "rank is 2"),
        ({"rank": -1, "world_size": 2}, "rank is -1"),
        ({"rank": 2, "world_size": 3, "subset": [5, 6]}, "world_size=3"),
    ],
)
def test_an_argument_outside_its_range_is_refused(beton, store, arguments, value):
    with pytest.raises(ConfigError, match=value):
        DistillLoader(beton, store, **arguments)


def test_views_beside_a_store_are_refused(beton, store):
    with pytest.raises(ConfigError, match="views"):
        DistillLoader(beton, store, views=store.manifest.views)


def test_an_epoch_before_the_first_is_refused(beton, store):
    loader = DistillLoader(beton, store)
    with pytest.raises(ConfigError, match="epoch=-1"):
        next(loader.epoch(-1))


def test_an_epoch_beyond_the_last_is_refused(beton, store):
    loader = DistillLoader(beton, store, epochs=3)
    with pytest.raises(ConfigError, match=r"epoch=3: expected a number in \[0, 3\)"):
        next(loader.epoch(3))


@pytest.mark.parametrize(("epochs", "views"), [(2, [1, 2]), (None, [1, 2, 3])])
def test_rows_are_read_ahead_until_the_last_epoch(beton, store, monkeypatch, epochs, views):
    asked: list[int] = []
    read = LogitStore.rows

    def recording(self, ids, view, *, out):
        asked.append(view)
        return read(self, ids, view, out=out)

    monkeypatch.setattr(LogitStore, "rows", recording)
    loader = DistillLoader(beton, store, batch_size=36, num_workers=1, epochs=epochs)
    for epoch in range(2):
        assert len(list(loader.epoch(epoch))) == 2
    for _ in range(1000):  # what is under way in the background
        if len(asked) >= len(views):
            break
        time.sleep(0.01)
    loader.close()
    assert asked == views


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_view_seed_outside_its_range_is_refused(beton, seed):
    views = Views(Policy.parse("rrc"), seed, 16)
    with pytest.raises(ConfigError, match=f"view seed is {seed}"):
        DistillLoader(beton, None, views=views)


def test_a_negative_seed_is_refused(beton, store):
    with pytest.raises(ConfigError, match="seed is -1"):
        DistillLoader(beton, store, seed=-1)


def test_two_loops_over_one_loader_are_refused(beton, store):
    loader = DistillLoader(beton, store, batch_size=8, num_workers=1)
    first = loader.epoch(0)
    next(first)
    with pytest.raises(ConfigError, match="already in use"):
        next(loader.epoch(1))
    first.close()
    loader.close()
