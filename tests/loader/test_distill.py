"""Alignment: every row a loader yields is the teacher's answer to exactly the pixels beside it."""

from __future__ import annotations

import gc
import threading
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.data.beton import Beton
from kdcache.data.policy import Policy
from kdcache.data.views import Views
from kdcache.errors import CacheCorruptError
from kdcache.loader.distill import Batch, DistillLoader
from kdcache.options import BuildLogitsOptions
from kdcache.reader.batches import PixelReader, view_pixels
from kdcache.store.build.build import build_logits
from kdcache.store.logit_store import LogitStore
from tests.loader.conftest import NUM_VIEWS
from tests.spelled import spelled, write_spelled_store
from tests.teachers import projection


class Held(NamedTuple):
    """All batches of some epochs, cloned as they came and joined at the end."""

    images: npt.NDArray[np.uint8]
    """(n, S, S, 3)."""
    labels: npt.NDArray[np.int64]
    sample_ids: npt.NDArray[np.int64]
    views: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]
    batch_sizes: list[int]


def hold(batches: list[Batch]) -> Held:
    return Held(
        np.concatenate([batch.images.permute(0, 2, 3, 1).numpy() for batch in batches]),
        torch.cat([batch.labels for batch in batches]).numpy(),
        torch.cat([batch.sample_ids for batch in batches]).numpy(),
        np.concatenate([np.full(len(batch.labels), batch.view) for batch in batches]),
        torch.cat([batch.rows.logits() for batch in batches if batch.rows]).numpy(),
        [len(batch.labels) for batch in batches],
    )


def epochs(loader: DistillLoader, numbers: range) -> Held:
    """Run epochs, holding each batch to the end as the contract says: cloned."""
    kept = []
    for epoch in numbers:
        for batch in loader.epoch(epoch):
            rows = batch.rows and batch.rows._replace(encoded=batch.rows.encoded.clone())
            kept.append(batch._replace(images=batch.images.clone(), rows=rows))
    loader.close()
    return hold(kept)


@pytest.fixture(scope="module")
def dense_store(tiny_beton: Path, tmp_path_factory: pytest.TempPathFactory) -> LogitStore:
    """The rows of `tiny_store`'s teacher in float16, built by another number of threads."""
    workspace = tmp_path_factory.mktemp("dense")
    for file in tiny_beton.parent.glob("train.*"):
        (workspace / file.name).hardlink_to(file)
    result = build_logits(
        BuildLogitsOptions(
            teacher="tests.teachers:projection",
            workspace=workspace,
            views=NUM_VIEWS,
            batch_size=8,
            num_workers=1,
            device="cpu",
        )
    ).to_json()
    return LogitStore.open(result["path"])


class Answers(NamedTuple):
    """By view and sample id, worked out without store or loader."""

    pixels: npt.NDArray[np.uint8]
    """(1 + V, N, S, S, 3)."""
    logits: npt.NDArray[np.float64]
    """(1 + V, N, C)."""


@pytest.fixture(scope="module")
def answers(beton: Beton) -> Answers:
    data = beton.manifest
    weight = projection().weight.detach().double().numpy()
    reader = PixelReader(
        beton, Views(Policy.parse(data.policy), 0, 32), batch_size=len(beton), num_workers=1
    )
    positions = [np.arange(len(beton))]
    seen = np.stack(
        [
            batch.images.permute(0, 2, 3, 1).numpy().copy()
            for view in range(1 + NUM_VIEWS)
            for batch in reader.read(positions, view)
        ]
    )
    images = (seen / 255 - np.array(data.mean)) / np.array(data.std)
    flat = images.transpose(0, 1, 4, 2, 3).reshape(*seen.shape[:2], -1)
    return Answers(seen, flat @ weight.T)


class Case(NamedTuple):
    """How a loader is made; every rank of it is read."""

    subset: npt.ArrayLike | None
    batch_size: int
    world_size: int
    num_workers: int


EVERY_ID = np.arange(72)
CASES = {
    "all": Case(None, batch_size=16, world_size=1, num_workers=2),
    "a third, backwards": Case(EVERY_ID[::-3], batch_size=5, world_size=1, num_workers=2),
    "one sample": Case([71], batch_size=128, world_size=1, num_workers=1),
    "two ranks": Case(EVERY_ID[5:50], batch_size=16, world_size=2, num_workers=1),
    "three ranks": Case(EVERY_ID[:65], batch_size=8, world_size=3, num_workers=2),
}


@pytest.mark.parametrize("codec", ["float32", "dense"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_row_is_the_teachers_answer_to_the_pixels_beside_it(
    beton, tiny_store, dense_store, answers, case, codec
):
    store = tiny_store if codec == "float32" else dense_store
    shares = []
    for rank in range(case.world_size):
        loader = DistillLoader(
            beton,
            store,
            case.subset,
            case.batch_size,
            seed=3,
            rank=rank,
            world_size=case.world_size,
            num_workers=case.num_workers,
        )
        held = epochs(loader, range(NUM_VIEWS + 1))
        assert np.array_equal(held.images, answers.pixels[held.views, held.sample_ids])
        assert np.array_equal(held.labels, beton.labels[held.sample_ids])
        expected = answers.logits[held.views, held.sample_ids]
        # float32 sums of 3,072 products of about 0.03 each; another view or sample differs by 1.
        rounding = np.full_like(expected, 1e-4)
        if codec == "dense":
            expected = expected - expected.mean(axis=1, keepdims=True)
            rounding += abs(expected) * 2**-11 + 2**-25
        assert (abs(held.logits - expected) <= rounding).all()
        shares.append(held.sample_ids.reshape(NUM_VIEWS + 1, -1))
    wanted = beton.sample_ids if case.subset is None else np.sort(case.subset)
    for of_epoch in np.sort(np.concatenate(shares, axis=1)):
        assert np.array_equal(of_epoch, wanted)
    assert max(share.shape[1] for share in shares) - min(share.shape[1] for share in shares) <= 1


def test_teacher_and_student_see_the_same_changed_pixels(beton, tmp_path):
    policy = "pad-crop(4, brightness=0.5, contrast=0.5, saturation=0.5, erase=0.5)"
    for file in beton.path.parent.glob("train.*"):
        (tmp_path / file.name).hardlink_to(file)
    result = build_logits(
        BuildLogitsOptions(
            teacher="tests.teachers:projection",
            workspace=tmp_path,
            views=2,
            policy=policy,
            codec="float32",
            batch_size=8,
            device="cpu",
        )
    ).to_json()
    held = epochs(DistillLoader(beton, result["path"], batch_size=16, num_workers=1), range(2))
    data = beton.manifest
    weight = projection().weight.detach().double().numpy()
    images = (held.images / 255 - np.array(data.mean)) / np.array(data.std)
    expected = images.transpose(0, 3, 1, 2).reshape(len(images), -1) @ weight.T
    # As above: float32 sums of 3,072 products.
    assert abs(held.logits - expected).max() < 1e-4
    for view in (1, 2):
        shown = held.views == view
        seen = view_pixels(beton, policy, 0, view, held.sample_ids[shown], num_workers=1)
        assert np.array_equal(held.images[shown], seen)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    subset=st.lists(st.integers(0, 71), min_size=3, max_size=72, unique=True),
    seed=st.integers(0, 2**32),
    batch_size=st.integers(1, 40),
    ranks=st.integers(1, 3).flatmap(lambda n: st.tuples(st.integers(0, n - 1), st.just(n))),
    codec=st.sampled_from(["dense", "float32"]),
    order=st.sampled_from(["random", "block-random", "sequential"]),
)
def test_every_row_spells_the_sample_id_and_the_view_beside_it(
    beton, spelled_stores, subset, seed, batch_size, ranks, codec, order
):
    rank, world_size = ranks
    loader = DistillLoader(
        beton,
        spelled_stores[codec],
        subset,
        batch_size,
        seed,
        rank=rank,
        world_size=world_size,
        num_workers=1,
        order=order,
    )
    held = epochs(loader, range(5))
    assert np.array_equal(held.logits, spelled(held.sample_ids, held.views))
    assert np.array_equal(np.unique(held.views), [1, 2, 3])


def test_an_epoch_is_in_a_new_order_that_the_seed_alone_decides(beton, store):
    def orders(seed: int) -> list[list[int]]:
        loader = DistillLoader(beton, store, batch_size=72, seed=seed, num_workers=1)
        found = [batch.sample_ids.tolist() for epoch in (0, 1, 0) for batch in loader.epoch(epoch)]
        loader.close()
        return found

    first, second, again = orders(seed=4)
    assert first == again
    assert first != second
    assert orders(seed=4)[0] == first
    assert orders(seed=5)[0] != first


def test_in_sequential_order_an_epoch_follows_the_file(beton, store):
    loader = DistillLoader(beton, store, [40, 3, 8, 71, 5], 2, order="sequential", num_workers=1)
    assert epochs(loader, range(1)).sample_ids.tolist() == [3, 5, 8, 40, 71]


@pytest.mark.parametrize(
    ("num_samples", "batch_size", "expected"),
    [
        (33, 16, [11, 11, 11]),
        (32, 16, [16, 16]),
        (17, 16, [8, 9]),
        (1, 16, [1]),
        (5, 2, [1, 2, 2]),
    ],
)
def test_batch_sizes_differ_by_at_most_one_and_nothing_is_dropped(
    beton, store, num_samples, batch_size, expected
):
    loader = DistillLoader(beton, store, range(num_samples), batch_size, num_workers=1)
    assert len(loader) == len(expected)
    assert sorted(epochs(loader, range(1)).batch_sizes) == expected


def test_epochs_may_be_asked_for_in_any_order(beton, store):
    loader = DistillLoader(beton, store, batch_size=20, num_workers=1)
    for epoch in (4, 1, 1, 0, 7):
        held = hold([batch._replace(images=batch.images.clone()) for batch in loader.epoch(epoch)])
        assert np.array_equal(held.views, np.full(72, 1 + epoch % NUM_VIEWS))
        assert np.array_equal(held.logits, spelled(held.sample_ids, held.views))
    loader.close()


def test_an_epoch_that_was_left_early_can_be_run_again(beton, store):
    loader = DistillLoader(beton, store, batch_size=8, num_workers=1)
    first = [batch.sample_ids.tolist() for batch in islice(loader.epoch(0), 2)]
    held = hold([batch._replace(images=batch.images.clone()) for batch in loader.epoch(0)])
    assert held.sample_ids[:16].tolist() == [*first[0], *first[1]]
    assert np.array_equal(held.logits, spelled(held.sample_ids, 1))
    loader.close()


def our_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("kdcache")]


def test_leaving_a_loop_early_leaves_no_thread(beton, store):
    loader = DistillLoader(beton, store, batch_size=4, num_workers=1)
    for _batch in loader.epoch(0):
        assert "kdcache-reader" in our_threads()
        break
    gc.collect()
    assert "kdcache-reader" not in our_threads()
    loader.close()
    assert our_threads() == []


def test_a_loader_that_is_dropped_without_a_word_leaves_no_thread(beton, store):
    loader = DistillLoader(beton, store, batch_size=4, num_workers=1)
    next(loader.epoch(0))
    staging = [t for t in threading.enumerate() if t.name.startswith("kdcache-staging")]
    del loader
    gc.collect()
    for thread in staging:
        thread.join(timeout=10)
    assert our_threads() == []


def test_an_error_in_the_background_ends_the_loop_and_its_threads(beton, tmp_path):
    damaged = write_spelled_store(tmp_path / "damaged.zarr", beton, num_views=2)
    loader = DistillLoader(beton, damaged, batch_size=16, num_workers=1)
    chunk = tmp_path / "damaged.zarr/views/2/rows/c/1/0"
    chunk.write_bytes(b"\xff" + chunk.read_bytes()[1:])
    assert len(list(loader.epoch(0))) == 5
    with pytest.raises(CacheCorruptError, match="views/2/rows"):
        next(loader.epoch(1))
    loader.close()
    assert our_threads() == []
