"""A shard says where it belongs: one that was moved is found by opening the store."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from kdcache.errors import CacheCorruptError
from kdcache.selection.subset import Subset
from kdcache.store.format.shard_file import OVERHEAD_BYTES, ShardIdentity, assemble, problem_of
from kdcache.store.logit_store import LogitStore
from kdcache.workspace import Workspace
from tests.store.builds import NUM_SAMPLES, build, check
from tests.store.conftest import create, manifest, snapshot, write_everything

IDENTITY = ShardIdentity("a" * 32, "views/1/rows", 2, 8, 12, "dense")


def swap(one: Path, other: Path) -> None:
    beside = one.with_name("aside")
    one.rename(beside)
    other.rename(one)
    beside.rename(other)


def move_to_another_block(path: Path) -> str:
    swap(path / "views/1/rows/c/0/0", path / "views/1/rows/c/5/0")
    return r"views/1/rows/c/0/0 .*block is 5, expected 0"


def move_to_another_view(path: Path) -> str:
    swap(path / "views/1/rows/c/3/0", path / "views/2/rows/c/3/0")
    return r"views/1/rows/c/3/0 .*array is 'views/2/rows', expected 'views/1/rows'"


def move_to_another_array(path: Path) -> str:
    swap(path / "scores/el2n/c/3", path / "scores/entropy/c/3")
    return r"scores/\w+/c/3 .*array is 'scores/\w+', expected"


def move_a_whole_view(path: Path) -> str:
    swap(path / "views/1", path / "views/2")
    return r"views/1/rows/c/0/0 .*array is 'views/2/rows', expected 'views/1/rows'"


def move_from_another_store(path: Path) -> str:
    other = Path(build(path.parents[1], view_seed=7, store=str(path.parent / "other.zarr"))["path"])
    Workspace(path.parents[1]).remember("store", path)
    assert (other / "views/1/rows/c/3/0").stat().st_size == (
        path / "views/1/rows/c/3/0"
    ).stat().st_size
    shutil.copy(other / "views/1/rows/c/3/0", path / "views/1/rows/c/3/0")
    shutil.rmtree(other)
    return r"views/1/rows/c/3/0 .*store is '\w{32}', expected"


def move_a_view_from_another_store(path: Path) -> str:
    other = Path(build(path.parents[1], view_seed=7, store=str(path.parent / "other.zarr"))["path"])
    Workspace(path.parents[1]).remember("store", path)
    shutil.rmtree(path / "views/1")
    (other / "views/1").rename(path / "views/1")
    shutil.rmtree(other)
    return r"views/1/rows .* belongs to another store"


MOVES = [
    move_to_another_block,
    move_to_another_view,
    move_to_another_array,
    move_a_whole_view,
    move_from_another_store,
    move_a_view_from_another_store,
]


@pytest.mark.parametrize("move", MOVES)
def test_a_moved_shard_is_found_by_opening_and_repaired(store_path, workspace, move):
    before = snapshot(store_path)
    expected = move(store_path)
    with pytest.raises(CacheCorruptError, match=expected):
        LogitStore.open(store_path)
    with pytest.raises(CacheCorruptError, match=r"belongs? elsewhere|differs from what"):
        check(workspace)
    check(workspace, store=str(store_path), repair=True)
    assert snapshot(store_path) == before


def test_a_moved_shard_is_found_in_an_object_store_too(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    write_everything(create(tmp_path / "s.zarr", manifest()))
    url = "memory://moved/s.zarr"
    target = fsspec.filesystem("memory")
    target.put(str(tmp_path / "s.zarr"), "/moved/s.zarr", recursive=True)
    assert LogitStore.open(url).num_views == 2
    target.copy("/moved/s.zarr/views/1/rows/c/0/0", "/moved/s.zarr/views/2/rows/c/0/0")
    with pytest.raises(CacheCorruptError, match=r"views/2/rows/c/0/0 .*array is 'views/1/rows'"):
        LogitStore.open(url)


def test_a_shard_that_is_moved_while_the_store_is_open_is_found_when_it_is_read(store_path):
    store = LogitStore.open(store_path)
    swap(store_path / "views/1/rows/c/0/0", store_path / "views/2/rows/c/0/0")
    with pytest.raises(CacheCorruptError, match=r"views/1/rows/c/0/0 .* belongs elsewhere"):
        store.logits([0], 1)


def test_plain_zarr_reads_the_rows(tiny_store):
    group = zarr.open_group(tiny_store.path, mode="r")
    everyone = np.arange(NUM_SAMPLES)
    for view in range(4):
        rows = group[f"views/{view}/rows"][:]
        np.testing.assert_array_equal(rows, tiny_store.rows(everyone, view))
    np.testing.assert_array_equal(group["scores/el2n"][:], tiny_store.scores["el2n"])
    np.testing.assert_array_equal(group["stats/correct"][:], tiny_store.stats["correct"])


def test_plain_zarr_notices_changed_values(store_path):
    file = store_path / "views/1/rows/c/0/0"
    content = bytearray(file.read_bytes())
    content[600] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_group(store_path, mode="r")["views/1/rows"][:]


def test_a_linked_clean_view_carries_the_identity_that_its_new_store_expects(store_path, workspace):
    Subset(np.arange(0, NUM_SAMPLES, 3, dtype=np.int64)).save(workspace / "subsets/third.npz")
    path = Path(build(workspace, views=1, subset="third")["path"])
    assert (path / "views/0/rows/c/2/0").samefile(store_path / "views/0/rows/c/2/0")
    about, linked = LogitStore.open(store_path).manifest, LogitStore.open(path).manifest
    assert (
        about.id_of("views/0/rows") == linked.id_of("views/0/rows") == linked.id_of("scores/el2n")
    )
    assert about.id_of("views/1/rows") != linked.id_of("views/1/rows")
    assert about.id_of("labels") != about.id_of("views/0/rows")


@pytest.mark.parametrize("place", [0, 100, 507, 508, 511, 512, 700, -25, -24, -21, -20, -1])
def test_every_byte_of_a_shard_counts(place):
    content = assemble(IDENTITY, np.ones((4, 25), dtype=np.float32), 4)
    assert len(content) == 400 + OVERHEAD_BYTES
    assert problem_of(IDENTITY, content, 400) is None
    content[place] ^= 1
    assert problem_of(IDENTITY, content, 400) is not None


@pytest.mark.parametrize("field", ShardIdentity._fields)
def test_every_field_of_the_identity_counts(field):
    content = assemble(IDENTITY, np.ones((4, 25), dtype=np.float32), 4)
    value = getattr(IDENTITY, field)
    other = IDENTITY._replace(**{field: value + 1 if isinstance(value, int) else f"{value}x"})
    assert f"{field} is {value!r}, expected" in str(problem_of(other, content, 400))
