"""Rows in the order of use, read ahead of it."""

from __future__ import annotations

import resource
import shutil
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from kdcache.data.beton import open_beton
from kdcache.errors import CacheCorruptError, TrainingError
from kdcache.loader.staging import RowPrefetcher, Rows
from kdcache.store.codecs.registry import CODECS
from kdcache.store.logit_store import LogitStore
from tests.spelled import spelled, write_spelled_store

IDS = np.array([40, 3, 71, 0, 12])
BACKGROUND = "kdcache-staging"


class RecordingStore(LogitStore):
    """A store that remembers who read which view."""

    def rows(self, sample_ids, view, *, out=None):
        vars(self).setdefault("reads", []).append((view, threading.current_thread().name))
        return super().rows(sample_ids, view, out=out)


@pytest.fixture(scope="module")
def store_path(tiny_beton: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("staging") / "spelled.zarr"
    return write_spelled_store(path, open_beton(tiny_beton), num_views=3).path


@pytest.fixture
def store(store_path: Path) -> RecordingStore:
    return RecordingStore.open(store_path)


@pytest.fixture
def stage(store: RecordingStore):
    stage = RowPrefetcher(store)
    yield stage
    stage.close()


def read_by(store: RecordingStore) -> list[tuple[int, str]]:
    return [(view, name.partition("_")[0]) for view, name in store.reads]


@pytest.mark.parametrize("codec", ["dense", "float32"])
def test_rows_decode_to_the_logits_that_were_encoded(codec):
    logits = spelled(IDS, 2)
    by_name = CODECS[codec](logits.shape[1])
    encoded = by_name.encode(logits, view_keys=IDS, view=2)
    rows = Rows(torch.from_numpy(encoded), by_name)
    assert rows.logits().dtype == torch.float32
    assert torch.equal(rows.logits(), torch.from_numpy(logits))


def test_rows_stay_encoded_until_they_are_used(stage):
    rows = stage.take(0, 1, IDS)
    assert (rows.dtype, tuple(rows.shape)) == (torch.float16, (5, 4))


def test_rows_come_in_the_order_asked_for(stage):
    for order in (IDS, IDS[::-1], np.sort(IDS)):
        assert np.array_equal(stage.take(0, 3, order).float().numpy(), spelled(order, 3))


def test_prefetched_rows_are_read_once_and_in_the_background(stage, store):
    stage.prefetch(1, 2, IDS)
    rows = stage.take(1, 2, IDS)
    assert np.array_equal(rows.float().numpy(), spelled(IDS, 2))
    assert read_by(store) == [(2, BACKGROUND)]


@pytest.mark.parametrize("budget_bytes", [None, 2 * 5 * 4 * 2, 2 * 5 * 4 * 2 - 1])
def test_rows_beyond_the_memory_budget_lie_in_a_file(store, budget_bytes):
    """Two epochs' rows count, of 5 samples with 4 numbers of 2 bytes each."""
    stage = RowPrefetcher(store, memory_budget_bytes=budget_bytes)
    rows = stage.take(0, 1, IDS)
    assert is_mapped_from_a_file(rows.data_ptr()) is (budget_bytes == 79)
    assert np.array_equal(rows.float().numpy(), spelled(IDS, 1))
    stage.close()


def test_a_budget_of_nothing_is_one(store):
    stage = RowPrefetcher(store, memory_budget_bytes=0)
    assert is_mapped_from_a_file(stage.take(0, 1, IDS).data_ptr())
    stage.close()


def test_a_temporary_folder_without_room_is_named(store):
    """A file that may not grow, in place of a full disk: a map without room kills the process."""
    stage = RowPrefetcher(store, memory_budget_bytes=0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (39, before[1]))
    try:
        with pytest.raises(
            TrainingError, match=rf"take 40 bytes .*{tempfile.gettempdir()}.*TMPDIR"
        ):
            stage.take(0, 1, IDS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    stage.close()


def is_mapped_from_a_file(address: int) -> bool:
    """Return what the kernel says of an address of this process."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, inode, *_ = line.split()
        start, end = (int(number, 16) for number in span.split("-"))
        if start <= address < end:
            return inode != "0"
    raise AssertionError(f"{address:x} is not mapped")


def test_rows_that_were_not_prefetched_are_read_when_they_are_taken(stage, store):
    stage.take(0, 1, IDS)
    assert read_by(store) == [(1, "MainThread")]


@pytest.mark.parametrize(("epoch", "view"), [(5, 2), (1, 3)], ids=["other epoch", "other view"])
def test_rows_prefetched_for_something_else_are_not_handed_out(stage, epoch, view):
    stage.prefetch(1, 2, IDS)
    order = IDS[::-1]
    assert np.array_equal(stage.take(epoch, view, order).float().numpy(), spelled(order, view))


def test_prefetched_rows_are_handed_out_once(stage):
    stage.prefetch(1, 2, IDS)
    stage.take(1, 2, IDS)
    order = IDS[::-1]
    assert np.array_equal(stage.take(1, 2, order).float().numpy(), spelled(order, 2))


def test_damage_found_in_the_background_is_raised_where_the_rows_are_taken(store_path, tmp_path):
    damaged = Path(shutil.copytree(store_path, tmp_path / "damaged.zarr"))
    chunk = damaged / "views/2/rows/c/0/0"
    content = bytearray(chunk.read_bytes())
    content[515] ^= 1
    chunk.write_bytes(content)
    stage = RowPrefetcher(LogitStore.open(damaged))
    stage.prefetch(1, 2, IDS)
    with pytest.raises(CacheCorruptError, match="views/2/rows"):
        stage.take(1, 2, IDS)
    stage.close()


def test_a_closed_stage_leaves_no_thread(store):
    stage = RowPrefetcher(store)
    stage.prefetch(1, 2, IDS)
    stage.close()
    assert not [t for t in threading.enumerate() if t.name.startswith(BACKGROUND)]
