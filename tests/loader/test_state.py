"""A loader's state counts delivered batches: training continues with the next one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kdcache.data.beton import open_beton
from kdcache.errors import CacheMismatchError, ConfigError
from kdcache.loader.batch import Batch
from kdcache.loader.distill import DistillLoader
from kdcache.loader.live import LiveLoader
from kdcache.teacher.forward import TeacherForward
from tests.spelled import spelled, write_spelled_store
from tests.teachers import Projection

SUBSET = range(0, 72, 2)
BATCHES = 6
"""Of 36 samples in batches of 7 at most."""


@pytest.fixture(scope="module")
def store_path(tiny_beton: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("state") / "spelled.zarr"
    return write_spelled_store(path, open_beton(tiny_beton), num_views=3).path


def make_live(beton: Path, *, seed: int) -> LiveLoader:
    data = open_beton(beton).manifest
    teacher = TeacherForward(
        Projection(4, seed=1, image_size=16),
        num_classes=4,
        mean=data.mean,
        std=data.std,
        device=torch.device("cpu"),
        precision="fp32",
    )
    return LiveLoader(beton, teacher, SUBSET, 7, seed, num_views=3, num_workers=1, teacher_size=16)


@pytest.fixture(params=["store", "no store", "live teacher"])
def make_loader(request, tiny_beton, store_path):
    def make(seed: int = 5, **changes: object) -> DistillLoader:
        if request.param == "live teacher":
            return make_live(tiny_beton, seed=seed)
        store = store_path if request.param == "store" else None
        options = {"batch_size": 7, "num_workers": 1, "num_views": 3} | changes
        return DistillLoader(tiny_beton, store, SUBSET, seed=seed, **options)

    return make


def content(batch: Batch) -> tuple:
    logits = None if batch.rows is None else batch.teacher_logits().tolist()
    return batch.view, batch.sample_ids.tolist(), batch.images.sum((1, 2, 3)).tolist(), logits


def contents(batches: Iterator[Batch] | DistillLoader) -> list[tuple]:
    return [content(batch) for batch in batches]


def test_iteration_yields_the_epoch_that_was_set(make_loader):
    with make_loader() as loader:
        assert len(loader) == BATCHES
        found = []
        for epoch in (0, 4, 1, 1):
            loader.set_epoch(epoch)
            found.append(contents(loader))
        assert found == [contents(loader.epoch(epoch)) for epoch in (0, 4, 1, 1)]
        assert [len(batches) for batches in found] == [BATCHES] * 4


@pytest.mark.parametrize("delivered", [0, 1, 4, BATCHES])
def test_a_new_loader_continues_with_the_batch_after_the_state(make_loader, delivered):
    with make_loader() as loader:
        loader.set_epoch(2)
        batches = iter(loader)
        for _ in range(delivered):
            next(batches)
        # More were decoded ahead by now; they do not count.
        state = json.loads(json.dumps(loader.state_dict()))
        assert (state["epoch"], state["delivered_batches"]) == (2, delivered)
        rest = contents(batches)
        following = contents(loader.epoch(3))
    assert len(rest) == BATCHES - delivered
    with make_loader() as resumed:
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        resumed.set_epoch(2)
        assert contents(resumed) == rest
        assert resumed.state_dict()["delivered_batches"] == BATCHES
        resumed.set_epoch(3)
        assert contents(resumed) == following
        assert len(contents(resumed)) == BATCHES, "iterating again starts the epoch again"


def test_in_the_loop_a_batch_counts_as_delivered(make_loader):
    with make_loader() as loader:
        counts = [loader.state_dict()["delivered_batches"] for _ in loader]
        assert counts == list(range(1, BATCHES + 1))
        for _ in loader.epoch(0):
            assert loader.state_dict()["delivered_batches"] == BATCHES, "epoch() does not count"
        for _ in loader:
            break
        assert loader.state_dict()["delivered_batches"] == 1
        loader.set_epoch(0)
        assert len(contents(loader)) == BATCHES, "a loop that was left starts anew"
        loader.set_epoch(1)
        assert loader.state_dict()["delivered_batches"] == 0


def test_a_state_replaces_a_position_whose_rows_were_read_ahead(tiny_beton, store_path):
    with DistillLoader(tiny_beton, store_path, SUBSET, 7, num_workers=1) as loader:
        loader.set_epoch(1)
        next(iter(loader))
        state = loader.state_dict() | {"delivered_batches": 3}
        loader.set_epoch(0)
        assert len(contents(loader)) == BATCHES  # the rows of epoch 1 are prefetched by now
        loader.load_state_dict(state)
        batches = 0
        for batch in loader:
            expected = spelled(batch.sample_ids, batch.view)
            assert batch.teacher_logits().tolist() == expected.tolist()
            batches += 1
        assert batches == BATCHES - 3


def test_ranks_continue_each_with_its_own_batches(tiny_beton, store_path):
    def make(rank: int) -> DistillLoader:
        return DistillLoader(
            tiny_beton, store_path, SUBSET, 7, num_workers=1, rank=rank, world_size=2
        )

    seen = []
    for rank in range(2):
        with make(rank) as loader:
            batches = iter(loader)
            seen += next(batches).sample_ids.tolist()
            state = loader.state_dict()
            del batches
        with make(rank) as resumed:
            resumed.load_state_dict(state)
            seen += [sample_id for batch in resumed for sample_id in batch.sample_ids.tolist()]
        with make(1 - rank) as other, pytest.raises(CacheMismatchError, match="rank is"):
            other.load_state_dict(state)
    assert sorted(seen) == list(SUBSET)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 6}, "seed is 6"),
        ({"batch_size": 8}, "batch_size is 8"),
        ({"order": "sequential"}, "order is 'sequential'"),
        ({"num_views": 2}, "num_views is 2"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_state_of_another_order_is_refused(tiny_beton, store_path, changes, message):
    usual = {"seed": 5, "batch_size": 7, "num_workers": 1}
    with DistillLoader(tiny_beton, store_path, SUBSET, **usual) as loader:
        state = loader.state_dict()
    with (
        DistillLoader(tiny_beton, store_path, SUBSET, **(usual | changes)) as other,
        pytest.raises(CacheMismatchError, match=message),
    ):
        other.load_state_dict(state)
    with (
        DistillLoader(tiny_beton, store_path, range(1, 72, 2), **usual) as other,
        pytest.raises(CacheMismatchError, match="sample_ids is"),
    ):
        other.load_state_dict(state)


def test_numbers_outside_the_epoch_are_refused(tiny_beton):
    with DistillLoader(tiny_beton, None, SUBSET, 7, num_workers=1, epochs=3) as loader:
        state = loader.state_dict()
        for delivered in (-1, BATCHES + 1):
            with pytest.raises(ConfigError, match=rf"={delivered}: expected an integer in \[0, 6]"):
                loader.load_state_dict(state | {"delivered_batches": delivered})
        with pytest.raises(ConfigError, match=r"epoch=3: expected an integer in \[0, 2]"):
            loader.load_state_dict(state | {"epoch": 3})
        for wrong in ({}, None, {"epoch": 0}):
            with pytest.raises(ConfigError, match="what state_dict returned"):
                loader.load_state_dict(wrong)
        for epoch in ("1", 1.5, None, True):
            with pytest.raises(ConfigError, match=r"^epoch=.*: expected an integer in"):
                loader.set_epoch(epoch)
            with pytest.raises(ConfigError, match=r"^epoch=.*: expected an integer in"):
                loader.load_state_dict(state | {"epoch": epoch})
        for epoch in (-1, 3):
            with pytest.raises(ConfigError, match=rf"epoch={epoch}: expected an integer in"):
                loader.set_epoch(epoch)
        loader.set_epoch(2)


def test_leaving_the_with_block_ends_the_threads_also_on_an_error(tiny_beton, store_path):
    def fail() -> None:
        with DistillLoader(tiny_beton, store_path, SUBSET, 7, num_workers=1) as loader:
            for _ in loader:
                raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fail()
    assert not [t.name for t in threading.enumerate() if t.name.startswith("kdcache-staging")]


def test_an_iteration_that_has_delivered_nothing_starts_at_batch_0(make_loader):
    loader = make_loader()
    assert len(contents(loader)) == BATCHES
    batches = iter(loader)
    assert loader.state_dict()["delivered_batches"] == 0
    assert content(next(batches)) == contents(make_loader())[0]


def test_an_epoch_out_of_range_is_refused_before_its_first_batch(make_loader):
    with pytest.raises(ConfigError, match=r"^epoch=-1: expected an integer of at least 0$"):
        make_loader().epoch(-1)


def test_a_closed_loader_says_so(make_loader):
    loader = make_loader()
    loader.close()
    with pytest.raises(ConfigError, match="is closed"):
        next(iter(loader))
    with pytest.raises(ConfigError, match="is closed"):
        next(iter(loader.epoch(1)))
