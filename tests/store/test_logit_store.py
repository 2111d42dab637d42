"""Reading a store: its formats, any order of ids, and every kind of damage."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.errors import (
    CacheCorruptError,
    CacheIncompleteError,
    CacheMismatchError,
    ConfigError,
)
from kdcache.seals import BLANK, seal
from kdcache.store.format import shards
from kdcache.store.logit_store import LogitStore
from tests.store.builds import check
from tests.store.conftest import create, manifest, snapshot, write_everything

NUM_SAMPLES, NUM_CLASSES, NUM_VIEWS = 72, 4, 3
A_FILE_OF_EACH_KIND = [
    "views/0/rows/c/3/0",
    "views/2/rows/c/8/0",
    "scores/el2n/c/0",
    "stats/top1/c/8",
    "labels/c/0",
    "sample_ids/c/0",
    "pixel_probe/c/0/0",
]


def read_everything(path: Path) -> None:
    store = LogitStore.open(path)
    for view in range(store.num_views + 1):
        store.logits(store.sample_ids, view)
    for mapping in (store.scores, store.stats):
        for name in mapping:
            _ = mapping[name]


def test_a_store_has_the_stated_formats(tiny_store):
    assert tiny_store.num_views == NUM_VIEWS
    assert (tiny_store.labels.shape, tiny_store.labels.dtype) == ((NUM_SAMPLES,), np.int64)
    assert tiny_store.sample_ids.tolist() == list(range(NUM_SAMPLES))
    assert tiny_store.sample_ids.dtype == np.int64
    scores = ["cross_entropy", "el2n", "entropy", "least_confidence", "margin"]
    assert list(tiny_store.scores) == scores
    for name in scores:
        values = tiny_store.scores[name]
        assert (values.shape, values.dtype) == ((NUM_SAMPLES,), np.float32)
    stats = {name: values.dtype for name, values in tiny_store.stats.items()}
    assert stats == {
        "correct": np.bool_,
        "logit_std": np.float32,
        "logsumexp": np.float32,
        "top1": np.int64,
    }
    assert all(values.shape == (NUM_SAMPLES,) for values in tiny_store.stats.values())
    assert (len(tiny_store.scores), len(tiny_store.stats)) == (5, 4)


def test_the_manifest_says_what_the_store_was_made_from(tiny_store):
    found = tiny_store.manifest
    assert (found.samples, found.classes) == (NUM_SAMPLES, NUM_CLASSES)
    assert found.class_names == ["class_0", "class_1", "class_2", "class_3"]
    assert (found.teacher, found.teacher_arch) == ("projection", "tests.teachers:projection")
    assert (found.codec, found.precision) == ("float32", "fp32")
    assert found.device == f"cpu (threads: {torch.get_num_threads()})"
    assert (found.batch_size, found.shard_rows) == (8, 8)
    assert found.versions["torch"] == torch.__version__.partition("+")[0]


@settings(max_examples=25, deadline=None)
@given(
    ids=st.lists(st.integers(0, NUM_SAMPLES - 1), max_size=30),
    view=st.integers(0, NUM_VIEWS),
    dtype=st.sampled_from([np.int64, np.int32, np.uint64, np.uint8]),
)
def test_rows_come_in_the_order_of_the_ids_that_ask_for_them(tiny_store, ids, view, dtype):
    whole = tiny_store.logits(np.arange(NUM_SAMPLES), view)
    asked = tiny_store.logits(np.array(ids, dtype=dtype), view)
    assert (asked.shape, asked.dtype) == ((len(ids), NUM_CLASSES), np.float32)
    np.testing.assert_array_equal(asked, whole[np.array(ids, dtype=np.int64)])


def test_ids_may_be_a_list(tiny_store):
    np.testing.assert_array_equal(
        tiny_store.logits([5, 3], 1), tiny_store.logits(np.array([5, 3]), 1)
    )


def test_each_view_has_rows_of_its_own(tiny_store):
    views = [tiny_store.logits(np.arange(NUM_SAMPLES), view) for view in range(NUM_VIEWS + 1)]
    for place, view in enumerate(views):
        for other in views[:place]:
            assert (np.abs(view - other).max(axis=1) > 1e-3).mean() > 0.9


def test_a_dense_store_is_read_as_float32(tmp_path):
    writer = create(tmp_path / "s.zarr", manifest(samples=4, codec="dense"), views=0)
    values = np.array([[1, 2, 3], [0.1, 0.2, 0.3], [-1, 0, 1], [9, 9, 9]], np.float16)
    write_everything(writer)
    writer.write_shard(0, 0, values, {})
    store = LogitStore.open(tmp_path / "s.zarr")
    assert store.rows([3, 1], 0).dtype == np.float16
    actual = store.logits([3, 1], 0)
    assert actual.dtype == np.float32
    np.testing.assert_array_equal(actual, values[[3, 1]].astype(np.float32))


@pytest.mark.parametrize("view", [0, 2])
@pytest.mark.parametrize(
    ("ids", "found"),
    [
        ([3, 99, 72, 5], "2 of 4 samples, the first is sample 99"),
        ([0, -1], "1 of 2 samples, the first is sample -1"),
        ([72], "1 of 1 samples, the first is sample 72"),
    ],
)
def test_ids_that_the_store_does_not_have_are_named(tiny_store, ids, found, view):
    with pytest.raises(CacheMismatchError, match=f"no row of view {view} for {found}"):
        tiny_store.logits(ids, view)


def test_ids_outside_a_subset_are_absent_from_its_views_alone(tmp_path):
    ids = np.array([2, 7, 11], dtype=np.int64)
    write_everything(create(tmp_path / "s.zarr", manifest(sample_ids=ids), sample_ids=ids, views=1))
    store = LogitStore.open(tmp_path / "s.zarr")
    assert store.logits([3], 0)[0, 0] == 3
    with pytest.raises(CacheMismatchError, match="sample 3; expected ids among its 3 rows"):
        store.logits([2, 3, 11], 1)


@pytest.mark.parametrize("view", [-1, 4, 100])
def test_a_view_that_the_store_does_not_have_is_named(tiny_store, view):
    with pytest.raises(CacheMismatchError, match=rf"view is {view}, .* 0 to 3\. .*views {view}"):
        tiny_store.logits([0], view)


@pytest.mark.parametrize(
    ("ids", "found"),
    [([0.0, 1.0], r"float64 of shape \(2,\)"), ([[0, 1]], r"int64 of shape \(1, 2\)")],
)
def test_ids_that_are_no_row_of_integers_are_refused(tiny_store, ids, found):
    with pytest.raises(ValueError, match=found):
        tiny_store.logits(ids, 0)


def test_an_unknown_score_lists_the_known(tiny_store):
    with pytest.raises(KeyError, match="'forgetting', expected one of cross_entropy, el2n"):
        tiny_store.scores["forgetting"]
    assert "forgetting" not in tiny_store.scores
    assert "el2n" in tiny_store.scores


def test_a_path_may_be_text_and_must_exist(tiny_store, tmp_path):
    assert LogitStore.open(str(tiny_store.path)).num_views == NUM_VIEWS
    with pytest.raises(FileNotFoundError, match=r"gone\.zarr does not exist.*build-logits"):
        LogitStore.open(tmp_path / "gone.zarr")


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CacheCorruptError, match="empty is not a Zarr group"):
        LogitStore.open(tmp_path / "empty")
    zarr.create_group(tmp_path / "foreign.zarr")
    with pytest.raises(CacheCorruptError, match=r"foreign\.zarr has no manifest"):
        LogitStore.open(tmp_path / "foreign.zarr")


def test_a_store_of_another_format_is_refused(store_path):
    about = json.loads((store_path / "zarr.json").read_text())
    about["attributes"]["kdcache"]["format_version"] = 99
    about["attributes"]["kdcache_seal"] = BLANK
    (store_path / "zarr.json").write_bytes(seal(json.dumps(about).encode()))
    with pytest.raises(CacheMismatchError, match=r"format_version of .* is 99, expected"):
        LogitStore.open(store_path)


def test_an_unfinished_store_is_refused(store_path):
    (store_path / "views/2/complete").unlink()
    with pytest.raises(CacheIncompleteError, match=r"holds 3 of 4 views, .* again"):
        LogitStore.open(store_path)


def test_a_store_without_views_is_refused(tmp_path):
    create(tmp_path / "s.zarr", manifest(), views=0)
    shutil.rmtree(tmp_path / "s.zarr/views")
    with pytest.raises(CacheIncompleteError, match="holds 0 of 0 views"):
        LogitStore.open(tmp_path / "s.zarr")


@pytest.mark.parametrize("name", A_FILE_OF_EACH_KIND)
def test_a_shard_that_is_gone_is_named(store_path, name):
    (store_path / name).unlink()
    array = name.partition("/c/")[0]
    with pytest.raises(CacheCorruptError, match=rf"lacks {name} \(1 shards of {array} are"):
        LogitStore.open(store_path)


@pytest.mark.parametrize("view", range(NUM_VIEWS + 1))
@pytest.mark.parametrize("lost", ["rows/zarr.json", ""])
def test_a_view_that_is_gone_is_named_and_made_again(store_path, workspace, view, lost):
    before = snapshot(store_path)
    if lost:
        (store_path / f"views/{view}" / lost).unlink()
    else:
        shutil.rmtree(store_path / f"views/{view}")
    if view == NUM_VIEWS and not lost:
        assert LogitStore.open(store_path).num_views == view - 1  # as if it had never been built
        return
    with pytest.raises(CacheCorruptError, match=rf"lacks views/{view}/rows/zarr\.json \(1 views"):
        LogitStore.open(store_path)
    found = check(workspace, store=str(store_path), repair=True)
    assert f"views/{view}/rows/zarr.json" in found["repaired"]
    assert snapshot(store_path) == before


def test_a_view_that_a_killed_build_had_just_begun_is_no_damage(store_path):
    key = "views/4/zarr.json"
    (store_path / key).parent.mkdir()
    shutil.copy(store_path / "views/3/zarr.json", store_path / key)
    assert LogitStore.open(store_path).num_views == NUM_VIEWS


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b'{"zarr_format": 3}'])
@pytest.mark.parametrize("key", ["zarr.json", "labels/zarr.json", "features/zarr.json"])
def test_a_damaged_zarr_json_is_said_in_one_line(store_path, key, content):
    (store_path / key).parent.mkdir(exist_ok=True)
    (store_path / key).write_bytes(content)
    with pytest.raises(
        CacheCorruptError, match=rf"^({key.split('/')[0]} of )?{store_path}.* (damaged|no manifest)"
    ):
        LogitStore.open(store_path)


@pytest.mark.parametrize("folder", ["scores", "stats", "views"])
def test_a_store_opens_without_what_its_folders_say(store_path, folder):
    """verify finds it; no row depends on it."""
    (store_path / folder / "zarr.json").write_bytes(b"{")
    read_everything(store_path)


def test_several_shards_that_are_gone_are_counted(store_path):
    for shard in (7, 2, 4):
        shutil.rmtree(store_path / f"views/1/rows/c/{shard}")
    with pytest.raises(CacheCorruptError, match=r"views/1/rows/c/2/0 \(3 shards of views/1/rows"):
        LogitStore.open(store_path)


GONE = "is missing.*kdcache verify --repair"


def test_a_shard_that_goes_while_the_store_is_read_is_named(store_path):
    """zarr would answer it with zeros."""
    store = LogitStore.open(store_path)
    for name in ("views/1/rows/c/4/0", "scores/el2n/c/8", "stats/top1/c/0"):
        (store_path / name).unlink()
    with pytest.raises(CacheCorruptError, match=rf"views/1/rows/c/4/0 of {store_path} {GONE}"):
        store.logits([3, 34], 1)
    with pytest.raises(CacheCorruptError, match=rf"scores/el2n/c/8 of {store_path} {GONE}"):
        _ = store.scores["el2n"]
    with pytest.raises(CacheCorruptError, match=rf"stats/top1/c/0 of {store_path} {GONE}"):
        _ = store.stats["top1"]
    assert store.logits([3, 44], 1).any(axis=1).all()


@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize("name", A_FILE_OF_EACH_KIND)
def test_a_flipped_bit_is_found_when_it_is_read(store_path, name, place):
    content = bytearray((store_path / name).read_bytes())
    content[place] ^= 1
    (store_path / name).write_bytes(content)
    with pytest.raises(
        CacheCorruptError, match=rf"{name} of {store_path} (holds bytes that differ|has)"
    ):
        read_everything(store_path)


@pytest.mark.parametrize("size", [0, 2, 512, 600])
def test_a_shard_that_was_cut_is_found_when_it_is_read(store_path, size):
    store = LogitStore.open(store_path)
    os.truncate(store_path / "views/1/rows/c/4/0", size)
    with pytest.raises(CacheCorruptError, match="views/1/rows"):
        store.logits([34], 1)


def test_damage_in_one_shard_does_not_reach_the_others(store_path, tiny_store):
    store = LogitStore.open(store_path)
    (store_path / "views/1/rows/c/4/0").write_bytes(b"x" * 132)
    others = [*range(32), *range(40, NUM_SAMPLES)]
    np.testing.assert_array_equal(store.logits(others, 1), tiny_store.logits(others, 1))
    with pytest.raises(CacheCorruptError, match="views/1/rows"):
        store.logits([39], 1)


def test_leftovers_of_a_killed_process_do_not_disturb_a_reader(store_path):
    for name in ("views/1/rows/c/4/0.abc.partial", "scores/el2n/c/2.abc.partial"):
        (store_path / name).write_bytes(b"half")
    read_everything(store_path)


def test_a_reader_changes_nothing(store_path):
    def state() -> list[tuple[str, int]]:
        return sorted((str(file), file.stat().st_mtime_ns) for file in store_path.rglob("*"))

    before = state()
    read_everything(store_path)
    assert state() == before


@pytest.mark.parametrize("at_once", [1, 3])
def test_each_shard_is_read_once_however_the_order_jumps(tiny_store, monkeypatch, at_once):
    read = shards.read_keys
    blocks: list[tuple[int, int]] = []

    def noting(zarr_store, keys):
        numbers = [int(key.split("/")[-2]) for key in keys]
        blocks.append((8 * numbers[0], 8 * numbers[-1] + 8))
        return read(zarr_store, keys)

    monkeypatch.setattr(shards, "MAX_SHARDS_PER_READ", at_once)
    monkeypatch.setattr(shards, "read_keys", noting)
    ids = np.random.default_rng(0).permutation(72)
    ids = ids[(ids < 16) | (ids >= 32)]  # shards 2 and 3 of 8 rows are not needed
    rows = tiny_store.rows(ids, view=1)
    size = 8 * at_once
    assert blocks == [
        (start, min(start + size, end))
        for begin, end in ((0, 16), (32, 72))
        for start in range(begin, end, size)
    ]
    monkeypatch.undo()
    np.testing.assert_array_equal(rows, np.concatenate([tiny_store.rows([i], 1) for i in ids]))


def test_rows_can_be_written_where_the_caller_wants_them(tiny_store):
    out = np.zeros((3, 4), dtype=np.float32)
    assert tiny_store.rows([5, 70, 5], 2, out=out) is out
    np.testing.assert_array_equal(out, tiny_store.rows([5, 70, 5], 2))


@pytest.mark.parametrize(
    ("ids", "view", "name"),
    [([0], 1.0, "view"), ([0], "1", "view"), ([0], True, "view"), ([0.5], 1, "sample_ids")],
    ids=str,
)
def test_ids_and_views_are_integers(tiny_store, ids, view, name):
    with pytest.raises(ConfigError, match=rf"^{name}\b.* expected .*integer") as raised:
        tiny_store.logits(ids, view)
    assert raised.value.parameter == name
    assert tiny_store.logits([0], np.int64(1)).shape == (1, 4)
