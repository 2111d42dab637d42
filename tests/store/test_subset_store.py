"""Stores for a subset: views of the kept samples alone, the clean view of all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdcache.data.beton import open_beton
from kdcache.errors import CacheMismatchError, ConfigError
from kdcache.loader.distill import DistillLoader
from kdcache.options import TrainOptions
from kdcache.selection.subset import Subset
from kdcache.store.logit_store import LogitStore
from kdcache.training.train import train
from tests.store.builds import NUM_SAMPLES, build, check
from tests.store.conftest import fresh_workspace, snapshot

KEPT = np.array([0, 2, 3, 7, 8, 9, 20, 33, 34, 35, 36, 40, 41, 50, 51, 60, 61, 62, 70, 71])
VIEWS = 2


@pytest.fixture
def subset(workspace) -> Path:
    """A subset of 20 samples in `workspace`, named `kept`."""
    path = workspace / "subsets/kept.npz"
    fingerprint = open_beton(workspace / "train.beton").manifest.fingerprint
    Subset(KEPT.astype(np.int64), {"data_fingerprint": fingerprint}).save(path)
    return path


@pytest.fixture
def beside_a_full_store(workspace, store_path, subset) -> Path:
    """A subset's store in the workspace of a store for all samples."""
    result = build(workspace, views=VIEWS, subset=str(subset))
    assert result["path"] == str(store_path.resolve().with_name("projection-kept.zarr"))
    assert (result["samples"], result["rows"], result["views"]) == (NUM_SAMPLES, len(KEPT), VIEWS)
    assert result["teacher_forwards"] == len(KEPT) * VIEWS  # none for view 0
    return Path(result["path"])


@pytest.mark.usefixtures("subset")
def test_without_another_store_the_clean_view_is_made_too(workspace):
    result = build(workspace, views=VIEWS, subset="kept")
    assert result["teacher_forwards"] == NUM_SAMPLES + len(KEPT) * VIEWS


def test_the_clean_view_of_another_store_is_taken_without_a_forward(
    workspace, beside_a_full_store, tmp_path, tiny_workspace
):
    alone = fresh_workspace(tmp_path / "alone", tiny_workspace)
    Subset.load(workspace / "subsets/kept.npz").save(alone / "subsets/kept.npz")
    path = Path(build(alone, views=VIEWS, subset="kept")["path"])
    assert snapshot(beside_a_full_store) == snapshot(path)
    assert check(workspace, store=str(path))["repaired"] == []


def test_the_rows_are_those_of_the_full_store(beside_a_full_store, tiny_store):
    store = LogitStore.open(beside_a_full_store)
    np.testing.assert_array_equal(store.sample_ids, KEPT)
    ids = np.random.default_rng(0).permutation(KEPT)
    for view in range(1, VIEWS + 1):
        # Batches hold other neighbours, so sums of 3,072 products may end in other last bits.
        np.testing.assert_allclose(
            store.logits(ids, view), tiny_store.logits(ids, view), rtol=0, atol=1e-4
        )
    everyone = np.arange(NUM_SAMPLES)
    np.testing.assert_array_equal(store.rows(everyone, 0), tiny_store.rows(everyone, 0))
    for name, values in tiny_store.scores.items():
        np.testing.assert_array_equal(store.scores[name], values)


@pytest.mark.parametrize(
    "changed",
    [{"policy": "clean"}, {"view_seed": 4}],
    ids=["policy", "view seed"],
)
@pytest.mark.usefixtures("store_path", "subset")
def test_a_clean_view_does_not_depend_on_how_others_are_made(workspace, changed):
    result = build(workspace, views=1, subset="kept", **changed)
    assert result["teacher_forwards"] == len(KEPT)


@pytest.mark.parametrize(
    "changed",
    [{"codec": "dense"}, {"image_size": 16, "teacher": "tests.store.teachers:small"}],
    ids=["codec", "image size"],
)
@pytest.mark.usefixtures("store_path", "subset")
def test_a_clean_view_that_holds_other_numbers_is_not_taken(workspace, changed):
    result = build(workspace, views=1, subset="kept", **changed)
    assert result["teacher_forwards"] == NUM_SAMPLES + len(KEPT)


@pytest.mark.usefixtures("subset")
def test_an_unfinished_store_gives_no_clean_view(workspace, store_path):
    (store_path / "views/2/complete").unlink()
    assert build(workspace, views=1, subset="kept")["teacher_forwards"] == NUM_SAMPLES + len(KEPT)


def test_damage_to_the_store_that_was_taken_from_is_repaired_on_its_own(
    workspace, store_path, beside_a_full_store
):
    """The two share files until one of them is changed: a repair must not reach the other."""
    shard = "views/0/rows/c/2/0"
    assert (store_path / shard).samefile(beside_a_full_store / shard)
    before = (beside_a_full_store / shard).read_bytes()
    (store_path / shard).unlink()
    (store_path / shard).write_bytes(b"x" * len(before))
    found = check(workspace, store=str(store_path), repair=True)
    assert found["repaired"] == [shard]
    assert (store_path / shard).read_bytes() == before
    assert (beside_a_full_store / shard).read_bytes() == before


def test_views_can_be_added_later(workspace, beside_a_full_store):
    before = snapshot(beside_a_full_store)
    result = build(workspace, views=VIEWS + 3, subset="kept")
    assert (result["views"], result["teacher_forwards"]) == (VIEWS + 3, 3 * len(KEPT))
    after = snapshot(beside_a_full_store)
    assert {key: after[key] for key in before} == before


def test_samples_that_were_not_kept_are_an_error_and_no_zeros(workspace, beside_a_full_store):
    store = LogitStore.open(beside_a_full_store)
    with pytest.raises(CacheMismatchError, match=r"view 1 for 2 of 3 .* is sample 1;.*20 row"):
        store.logits([0, 1, 4], 1)
    assert store.logits([0, 1, 4], 0).shape == (3, 4)
    with pytest.raises(CacheMismatchError, match=r"the rows of 1 of 3 samples, the first is 1\."):
        DistillLoader(workspace / "train.beton", store, np.array([0, 1, 2]), batch_size=4)


def test_a_loader_without_a_subset_streams_the_rows_that_there_are(workspace, beside_a_full_store):
    store = LogitStore.open(beside_a_full_store)
    loader = DistillLoader(workspace / "train.beton", store, batch_size=8, num_workers=1)
    seen = []
    for batch in loader.epoch(0):
        ids = batch.sample_ids.numpy()
        np.testing.assert_array_equal(batch.rows.logits().numpy(), store.logits(ids, 1))
        seen += ids.tolist()
    loader.close()
    assert sorted(seen) == KEPT.tolist()


def test_a_store_for_another_subset_is_refused(workspace, beside_a_full_store):
    other = KEPT.copy().astype(np.int64)
    other[-1] = 69
    other.sort()
    Subset(other).save(workspace / "subsets/kept.npz")
    before = snapshot(beside_a_full_store)
    with pytest.raises(CacheMismatchError, match=r"rows_digest is '\w{64}', found '") as error:
        build(workspace, views=VIEWS, subset="kept")
    assert str(error.value).count(", found ") == 1
    assert snapshot(beside_a_full_store) == before


def test_a_subset_of_other_data_is_refused(workspace):
    Subset(KEPT.astype(np.int64), {"data_fingerprint": "e" * 64}).save(
        workspace / "subsets/kept.npz"
    )
    with pytest.raises(CacheMismatchError, match=r"kept\.npz .* data_fingerprint is eeeeeeeeeeee,"):
        build(workspace, subset="kept")


def test_a_subset_that_does_not_exist_is_named(workspace):
    with pytest.raises(ConfigError, match="subset=gone: "):
        build(workspace, subset="gone")
    assert not list(workspace.glob("stores/*.zarr"))


@pytest.mark.usefixtures("subset")
def test_a_student_is_trained_from_it_without_a_forward(workspace, tiny_workspace):
    for file in tiny_workspace.glob("val.*"):
        (workspace / file.name).symlink_to(file)
    build(workspace, views=VIEWS, subset="kept", codec="lowrank(k=2, r=2)")
    result = train(
        TrainOptions(
            workspace=workspace,
            subset="kept",
            model="resnet8",
            epochs=2,
            batch_size=8,
            num_workers=1,
            device="cpu",
        )
    ).to_json()
    assert (result["samples"], result["teacher_forwards"]) == (len(KEPT), 0)
