"""Writing: what exists when, what a killed process leaves, and what is never touched again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.errors import CacheIncompleteError, ConfigError
from kdcache.scores.predictions import STATS
from kdcache.scores.registry import SCORES
from kdcache.store.format.layout import PER_SAMPLE_ARRAYS, existing_shards, is_complete, open_group
from kdcache.store.format.location import open_zarr_store
from kdcache.store.logit_store import LogitStore
from kdcache.store.writer import StoreWriter
from tests.store.conftest import (
    create,
    manifest,
    rows_of,
    snapshot,
    write_everything,
    write_shard,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "stores" / "by-hand.zarr"


def group_of(path: Path) -> zarr.Group:
    return zarr.open_group(path, mode="r")


def test_there_is_an_array_for_every_score_and_statistic():
    names = {f"scores/{name}" for name in SCORES} | {f"stats/{name}" for name in STATS}
    assert set(PER_SAMPLE_ARRAYS) == names


def test_a_new_store_has_all_its_arrays_and_no_shard(path):
    writer = create(path, manifest(), views=2)
    group, found = open_group(open_zarr_store(path, read_only=True), path="")
    assert found == manifest()
    assert group["labels"][:].tolist() == [number % 3 for number in range(20)]
    assert group["sample_ids"][:].tolist() == list(range(20))
    for name, dtype in PER_SAMPLE_ARRAYS.items():
        assert (group[name].shape, group[name].dtype) == ((20,), dtype)
        assert existing_shards(group, name) == set()
    assert writer.num_views == 2
    for view in range(3):
        array = group[f"views/{view}/rows"]
        assert (array.shape, array.dtype, array.chunks) == ((20, 3), np.float32, (4, 3))
        assert writer.missing_shards(view) == [0, 1, 2, 3, 4]
        assert not is_complete(group, view)


def test_rows_have_the_type_of_the_codec(path):
    create(path, manifest(codec="dense"), views=0)
    assert group_of(path)["views/0/rows"].dtype == np.float16


def test_a_store_smaller_than_a_shard_has_one(path):
    writer = create(path, manifest(samples=3, shard_rows=128), views=0)
    assert writer.missing_shards(0) == [0]
    write_everything(writer)
    assert LogitStore.open(path).logits([2], view=0)[0, 0] == 2


def test_a_shard_exists_when_it_is_written(path):
    writer = create(path, manifest(samples=18))
    for view, shard in ((1, 4), (0, 2), (2, 0)):
        write_shard(writer, view, shard)
    assert writer.missing_shards(0) == [0, 1, 3, 4]
    assert writer.missing_shards(1) == [0, 1, 2, 3]
    assert writer.missing_shards(2) == [1, 2, 3, 4]
    assert StoreWriter(path).missing_shards(1) == [0, 1, 2, 3]
    group = group_of(path)
    np.testing.assert_array_equal(group["views/1/rows"][16:], rows_of(writer, 1)[16:])
    assert group["scores/el2n"][8:12].tolist() == [8, 9, 10, 11]


def test_a_shard_of_zeros_exists_too(path):
    writer = create(path, manifest(), views=0)
    values = {name: np.zeros(4, dtype) for name, dtype in PER_SAMPLE_ARRAYS.items()}
    writer.write_shard(0, 0, np.zeros((4, 3), np.float32), values)
    assert writer.missing_shards(0) == [1, 2, 3, 4]


def test_a_shard_of_the_clean_view_is_missing_where_one_of_its_scores_is(path):
    writer = create(path, manifest())
    write_everything(writer)
    for number, name in enumerate(("scores/entropy", "stats/top1", "stats/correct")):
        (path / name / "c" / str(number)).unlink()
    assert writer.missing_shards(0) == [0, 1, 2]
    assert writer.missing_shards(1) == []


def test_the_rows_of_a_shard_come_after_its_scores(path):
    writer = create(path, manifest(), views=0)
    values = {name: np.zeros(4, dtype) for name, dtype in PER_SAMPLE_ARRAYS.items()}
    with pytest.raises(ValueError, match="could not convert string to float"):
        writer.write_shard(0, 0, np.full((4, 3), "x"), values)
    group = group_of(path)
    assert all(existing_shards(group, name) == {0} for name in PER_SAMPLE_ARRAYS)
    assert existing_shards(group, "views/0/rows") == set()


def test_leftovers_of_a_killed_process_are_no_shards_and_are_swept(path):
    writer = create(path, manifest())
    write_shard(writer, 0, 1)
    leftovers = [
        path / "views/0/rows/c/3/.0.123.partial",
        path / "views/1/rows/c/12.partial",
        path / "scores/entropy/c/.2.123.partial",
        path / "views/1/.complete.123.partial",
        path / "labels/.zarr.json.123.partial",
    ]
    for leftover in leftovers:
        leftover.parent.mkdir(parents=True, exist_ok=True)
        leftover.write_bytes(b"half")
    group = group_of(path)
    assert existing_shards(group, "views/0/rows") == {1}
    assert existing_shards(group, "views/1/rows") == set()
    assert existing_shards(group, "scores/entropy") == {1}
    assert not is_complete(group, 1)
    again = StoreWriter(path)
    assert not any(leftover.exists() for leftover in leftovers)
    assert again.missing_shards(0) == [0, 2, 3, 4]


def test_an_array_that_a_killed_process_did_not_finish_is_made_again(path):
    writer = create(path, manifest(), views=1)
    write_everything(writer)
    before = snapshot(path)
    (path / "views/2/rows").mkdir(parents=True)  # as a killed process leaves it
    (path / "views/3").mkdir()
    again = StoreWriter(path)
    assert again.num_views == 1
    assert LogitStore.open(path).num_views == 1
    again.add_views(3)
    assert again.missing_shards(3) == [0, 1, 2, 3, 4]
    after = snapshot(path)
    assert {name: after[name] for name in before} == before


def test_views_can_be_added_and_leave_the_others_as_they_are(path):
    writer = create(path, manifest(), views=1)
    write_everything(writer)
    before = snapshot(path)
    writer.add_views(1)
    assert snapshot(path) == before
    writer.add_views(3)
    assert writer.num_views == 3
    after = snapshot(path)
    assert {name: after[name] for name in before} == before
    with pytest.raises(CacheIncompleteError, match="holds 2 of 4 views"):
        LogitStore.open(path)
    writer.add_views(0)
    assert writer.num_views == 3


def test_a_store_for_a_subset_has_all_samples_in_the_clean_view_alone(path):
    ids = np.array([1, 4, 5, 11, 19], dtype=np.int64)
    writer = create(path, manifest(sample_ids=ids), sample_ids=ids, views=2)
    assert writer.sample_ids(0).tolist() == list(range(20))
    assert writer.sample_ids(1).tolist() == ids.tolist()
    assert (writer.missing_shards(0), writer.missing_shards(1)) == ([0, 1, 2, 3, 4], [0, 1])
    write_everything(writer)
    store = LogitStore.open(path)
    assert store.sample_ids.tolist() == ids.tolist()
    assert store.logits([19, 1, 11], view=2)[:, 0].tolist() == [2019, 2001, 2011]
    assert store.logits([2, 19], view=0)[:, 0].tolist() == [2, 19]


def test_a_view_is_complete_when_it_says_so(path):
    writer = create(path, manifest(), views=1)
    write_everything(writer)
    assert (path / "views/1/complete").read_bytes() == b"complete\n"
    written = (path / "views/1/complete").stat().st_mtime_ns
    writer.finish_view(1)
    assert (path / "views/1/complete").stat().st_mtime_ns == written


def test_a_new_store_replaces_the_old_one_whole(path):
    write_everything(create(path, manifest(), views=3))
    writer = create(path, manifest(samples=8, classes=2), views=0)
    assert writer.num_views == 0
    assert sorted(file.name for file in (path / "views").iterdir()) == ["0", "zarr.json"]
    write_everything(writer)
    assert LogitStore.open(path).labels.tolist() == [0, 1] * 4
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_folder_that_holds_something_else_is_not_replaced(path):
    path.mkdir(parents=True)
    (path / "thesis.tex").write_text("chapter 1")
    with pytest.raises(ConfigError, match=r"holds 1 files and no logit store.*thesis\.tex"):
        create(path, manifest(), views=0)
    assert (path / "thesis.tex").read_text() == "chapter 1"


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_the_order_in_which_shards_are_written_leaves_no_trace(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("orders")
    places = [(view, shard) for view in range(2) for shard in range(3)]
    stores = []
    for name in "ab":
        writer = create(folder / f"{name}.zarr", manifest(samples=9), views=1)
        for view, shard in data.draw(st.permutations(places)):
            write_shard(writer, view, shard)
            assert shard not in writer.missing_shards(view)
        writer.finish_view(0)
        writer.finish_view(1)
        stores.append(snapshot(folder / f"{name}.zarr"))
    assert stores[0] == stores[1]
