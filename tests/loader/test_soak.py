"""What must not grow, and what must not depend on how it is asked for."""

from __future__ import annotations

import gc
import hashlib
import threading
from itertools import pairwise

import numpy as np
import psutil
import pytest
import torch

from kdcache.data.beton import open_beton
from kdcache.data.policy import Policy
from kdcache.data.views import Views
from kdcache.loader.distill import DistillLoader
from tests.spelled import write_spelled_store

pytestmark = pytest.mark.long

EPOCHS = 20
VIEW = 2
SUBSETS = {"all": np.arange(72), "a third": np.arange(1, 72, 3)}
POLICIES = ["pad-crop(4, flip)", "rrc(scale=(0.3, 1), brightness=0.4, contrast=0.4, erase=0.5)"]


@pytest.fixture(scope="module")
def beton(tiny_beton):
    return open_beton(tiny_beton)


@pytest.fixture(scope="module")
def store(beton, tmp_path_factory):
    return write_spelled_store(tmp_path_factory.mktemp("soak") / "store", beton, num_views=3)


def run(loader, epoch):
    """Run an epoch to its end."""
    for batch in loader.epoch(epoch):
        assert batch.rows is None or len(batch.rows.logits()) == len(batch.labels)


def test_memory_is_flat_over_many_epochs(beton):
    views = Views(Policy.parse("rrc(erase=0.5)"), 0, 128)
    loader = DistillLoader(beton, None, batch_size=8, num_workers=2, views=views)
    process = psutil.Process()
    used_bytes = []
    for epoch in range(3 + EPOCHS):
        run(loader, epoch)
        used_bytes.append(process.memory_info().rss)
    # One batch of 393 kB kept by each epoch would be 7.9 MB.
    assert used_bytes[-1] - used_bytes[2] < 4_000_000


def test_staged_rows_are_let_go_after_their_epoch(beton, store):
    loader = DistillLoader(beton, store, batch_size=8, num_workers=2)
    alive = []
    for epoch in range(6):
        run(loader, epoch)
        gc.collect()
        alive.append(
            sum(
                type(thing) is torch.Tensor and thing.shape == (72, 4) for thing in gc.get_objects()
            )
        )
    loader.close()
    assert max(alive) <= 1  # those of the next epoch


def test_threads_are_flat_over_many_loops_half_of_them_left(beton, store):
    loader = DistillLoader(beton, store, batch_size=8, num_workers=2)
    for number in range(4):  # every thread that a loader keeps has started after these
        for _batch in loader.epoch(number):
            if number % 2:
                break
    before = psutil.Process().num_threads(), threading.active_count()
    for number in range(100):
        for _batch in loader.epoch(number):
            if number % 2:
                break
    # A thread that each loop, or each loop that was left, keeps would be 50 of them. Fewer than ten
    # are pools of libraries that grow to their size.
    assert psutil.Process().num_threads() < before[0] + 10
    assert threading.active_count() < before[1] + 10
    loader.close()


def seen(beton, views, subset, *, world_size, num_workers):
    """Return (id, view, digest of the pixels) of everything that all ranks yield in an epoch."""
    found = []
    for rank in range(world_size):
        loader = DistillLoader(
            beton,
            None,
            subset,
            batch_size=5 + rank,
            seed=world_size,
            rank=rank,
            world_size=world_size,
            num_workers=num_workers,
            views=views,
        )
        for batch in loader.epoch(VIEW - 1):
            images = batch.images.permute(0, 2, 3, 1).numpy()
            for sample_id, image in zip(batch.sample_ids.tolist(), images, strict=True):
                digest = hashlib.blake2b(image.tobytes(), digest_size=8).hexdigest()
                found.append((sample_id, batch.view, digest))
        loader.close()
    return sorted(found)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("subset", SUBSETS.values(), ids=SUBSETS.keys())
def test_workers_and_ranks_change_nothing_of_what_is_seen(beton, policy, subset):
    """With the parameters, 24 combinations."""
    views = Views(Policy.parse(policy), 7, 16)
    ways = [(workers, ranks) for workers in (1, 2) for ranks in (1, 2, 3)]
    sets = [
        seen(beton, views, subset, world_size=ranks, num_workers=workers) for workers, ranks in ways
    ]
    assert [sample_id for sample_id, _, _ in sets[0]] == subset.tolist()
    assert {view for _, view, _ in sets[0]} == {VIEW}
    assert len({digest for _, _, digest in sets[0]}) > 0.9 * len(subset)
    assert all(one == other for one, other in pairwise(sets))
