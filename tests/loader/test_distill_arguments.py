"""What a loader yields for each kind of store and subset, and the arguments that it refuses."""

from __future__ import annotations

import json
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
        ({"rank": 2, "world_size": 2}, r"rank=2: expected an integer in"),
        ({"rank": -1, "world_size": 2}, r"rank=-1: expected an integer in"),
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
    with pytest.raises(ConfigError, match=r"epoch=3: expected an integer in \[0, 2]"):
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
    with pytest.raises(ConfigError, match=r"^seed=-1: expected an integer of at least 0$"):
        DistillLoader(beton, store, seed=-1)


INTEGERS = {
    "batch_size": 1,
    "seed": 0,
    "num_workers": 1,
    "epochs": 1,
    "num_views": 0,
    "memory_budget_bytes": 1,
    "world_size": 1,
    "rank": 0,
}
"""Argument -> its smallest value."""


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("value", [1.5, "1", True, [1], "too small"], ids=str)
def test_an_argument_that_is_no_such_integer_is_named(beton, store, name, value):
    given = INTEGERS[name] - 1 if value == "too small" else value
    with pytest.raises(ConfigError, match=f"^{name}=.*: expected an integer") as raised:
        DistillLoader(beton, store, **{name: given})
    assert (raised.value.parameter, raised.value.value) == (name, given)


def test_integers_of_numpy_are_integers(beton, store):
    given = {name: np.int64(smallest) for name, smallest in INTEGERS.items()}
    given |= {"memory_budget_bytes": np.int64(2**28), "num_views": np.uint8(2)}
    with DistillLoader(beton, store, [3], **given) as loader:
        loader.set_epoch(np.int64(0))
        json.dumps(loader.state_dict())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beton": None}, "beton is NoneType, expected a Beton, or the path of one"),
        ({"store": 3}, "store is int, expected a LogitStore, the path or URL of one, or None"),
        ({"device": "gpu"}, "device=gpu: expected a device of torch, such as cpu, cuda or cuda:1"),
        ({"device": 3}, "device is int, expected a device of torch"),
        ({"order": "rand"}, "order=rand: expected one of random, block-random, sequential"),
        ({"order": None}, "order=None: expected one of random"),
        ({"store": None, "views": 3}, "views is int, expected Views, a Policy, or the text of"),
        ({"subset": [1.5]}, "subset is float64 of shape"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:20],
)
def test_an_argument_of_another_type_is_named(beton, store, arguments, message):
    with pytest.raises(ConfigError, match=f"^{message}") as raised:
        DistillLoader(**({"beton": beton, "store": store} | arguments))
    assert raised.value.parameter == list(arguments)[-1]


@pytest.mark.parametrize("policy", ["clean", Policy.parse("clean")], ids=["text", "Policy"])
def test_views_may_be_a_policy(beton, policy):
    with DistillLoader(beton, None, [9, 4], views=policy, num_workers=1) as loader:
        (batch,) = loader
    expected = view_pixels(beton, "clean", 0, 1, batch.sample_ids.numpy(), num_workers=1)
    assert np.array_equal(batch.images.permute(0, 2, 3, 1).numpy(), expected)


def test_a_subset_may_be_the_path_of_its_file(beton, store, tmp_path):
    subset = Subset(np.array([4, 9]), {"data_fingerprint": beton.manifest.data_fingerprint})
    subset.save(tmp_path / "two.npz")
    for path in (tmp_path / "two.npz", str(tmp_path / "two.npz")):
        with DistillLoader(beton, store, path) as loader:
            assert loader.sample_ids.tolist() == [4, 9]
    Subset(np.array([4, 9]), {"data_fingerprint": "f" * 64}).save(tmp_path / "other.npz")
    with pytest.raises(CacheMismatchError, match="was selected from other data"):
        DistillLoader(beton, store, tmp_path / "other.npz")


def test_repr_tells_the_data_the_store_and_the_numbers(beton, store):
    with DistillLoader(beton, store, [3, 4], batch_size=8) as loader:
        assert repr(loader) == (
            f"DistillLoader('{beton.path}', '{store.path}', samples=2, batch_size=8, device='cpu')"
        )


def test_a_new_loop_ends_the_one_before_which_says_so(beton, store):
    with DistillLoader(beton, store, batch_size=8, num_workers=1) as loader:
        first = iter(loader)
        next(first)
        assert len(list(loader)) == len(loader)
        with pytest.raises(ConfigError, match="a later loop over this DistillLoader has ended"):
            next(first)
        # An iteration that has not started ends none.
        loader.epoch(1)
        second, third = loader.epoch(1), loader.epoch(2)
        assert len(list(second)) == len(list(third)) == len(loader)
