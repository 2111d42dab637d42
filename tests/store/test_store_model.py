"""A store against a dict: any order of what a builder may do, and what a reader then sees."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from kdcache.errors import CacheIncompleteError, CacheMismatchError
from kdcache.store.format.layout import PER_SAMPLE_ARRAYS
from kdcache.store.logit_store import LogitStore
from kdcache.store.writer import StoreWriter
from tests.store.conftest import create, manifest

SAMPLES, SHARD_ROWS = 7, 3
SUBSET = np.array([0, 2, 3, 5], dtype=np.int64)


class StoreModel(RuleBasedStateMachine):
    """Shards in any order, views at any time, processes that end between any two steps."""

    @initialize(is_subset=st.booleans())
    def begin(self, *, is_subset: bool) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "s.zarr"
        ids = SUBSET if is_subset else np.arange(SAMPLES, dtype=np.int64)
        about = manifest(samples=SAMPLES, shard_rows=SHARD_ROWS, sample_ids=ids)
        self.writer = create(self.path, about, sample_ids=ids, views=0)
        self.ids = ids
        self.views = 0
        self.written: dict[tuple[int, int], np.ndarray] = {}  # view, sample id -> row
        self.whole: set[int] = set()

    def ids_of(self, view: int) -> np.ndarray:
        return np.arange(SAMPLES) if view == 0 else self.ids

    def missing(self, view: int) -> list[int]:
        ids = self.ids_of(view)
        return sorted(
            {at // SHARD_ROWS for at, i in enumerate(ids) if (view, i) not in self.written}
        )

    @rule(more=st.integers(0, 2))
    def add_views(self, more: int) -> None:
        self.views = min(3, self.views + more)
        self.writer.add_views(self.views)

    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        view = data.draw(st.integers(0, self.views))
        ids = self.ids_of(view)
        shard = data.draw(st.integers(0, (len(ids) - 1) // SHARD_ROWS))
        part = ids[shard * SHARD_ROWS : (shard + 1) * SHARD_ROWS]
        # Zeros too: a row of zeros is a row.
        salt = data.draw(st.sampled_from([0, 1, 2]))
        rows = (salt * (1 + view + part[:, None] * [1, 2, 3])).astype(np.float32)
        scores = {name: part.astype(dtype) for name, dtype in PER_SAMPLE_ARRAYS.items()}
        self.writer.write_shard(view, shard, rows, {} if view else scores)
        self.written |= {(view, i): row for i, row in zip(part, rows, strict=True)}

    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        view = data.draw(st.integers(0, self.views))
        if not self.missing(view):
            self.writer.finish_view(view)
            self.whole.add(view)

    @rule()
    def finish_everything(self) -> None:
        for view in range(self.views + 1):
            for shard in self.writer.missing_shards(view):
                part = self.ids_of(view)[shard * SHARD_ROWS : (shard + 1) * SHARD_ROWS]
                scores = {name: part.astype(dtype) for name, dtype in PER_SAMPLE_ARRAYS.items()}
                rows = np.full((len(part), 3), view, dtype=np.float32)
                self.writer.write_shard(view, shard, rows, {} if view else scores)
                self.written |= {(view, i): row for i, row in zip(part, rows, strict=True)}
            self.writer.finish_view(view)
            self.whole.add(view)

    @rule(torn=st.booleans())
    def go_on_in_another_process(self, *, torn: bool) -> None:
        if torn:
            (self.path / "views/0/rows/c").mkdir(exist_ok=True)
            (self.path / "views/0/rows/c/.1.77.partial").write_bytes(b"half")
        self.writer = StoreWriter(self.path)
        assert not list(self.path.rglob("*.partial"))

    @invariant()
    def what_is_missing_is_known(self) -> None:
        assert self.writer.num_views == self.views
        for view in range(self.views + 1):
            assert self.writer.missing_shards(view) == self.missing(view)

    @precondition(lambda self: self.whole != set(range(self.views + 1)))
    @rule()
    def an_unfinished_store_is_refused(self) -> None:
        with pytest.raises(CacheIncompleteError, match=f"of {self.views + 1} views"):
            LogitStore.open(self.path)

    @precondition(lambda self: self.whole == set(range(self.views + 1)))
    @rule(data=st.data())
    def a_finished_store_gives_what_was_written(self, data: st.DataObject) -> None:
        store = LogitStore.open(self.path)
        assert store.num_views == self.views
        view = data.draw(st.integers(0, self.views))
        ids = data.draw(st.lists(st.integers(0, SAMPLES - 1), max_size=9))
        if absent := [i for i in ids if i not in self.ids_of(view)]:
            with pytest.raises(CacheMismatchError, match=rf"first is sample {absent[0]};"):
                store.rows(np.array(ids, dtype=np.int64), view)
            return
        rows = store.rows(np.array(ids, dtype=np.int64), view)
        expected = [self.written[view, i] for i in ids]
        np.testing.assert_array_equal(rows, np.array(expected).reshape(len(ids), 3))
        assert store.scores["el2n"].tolist() == list(range(SAMPLES))

    def teardown(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


TestStoreModel = StoreModel.TestCase
TestStoreModel.settings = settings(max_examples=12, stateful_step_count=14, deadline=None)
