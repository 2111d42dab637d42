"""The teacher in the loop answers what a store of its answers holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from kdcache.data.beton import open_beton
from kdcache.data.views import default_views
from kdcache.errors import ConfigError
from kdcache.loader.distill import DistillLoader
from kdcache.loader.live import LiveLoader
from kdcache.reader.batches import view_pixels
from kdcache.teacher.forward import TeacherForward
from tests.teachers import Projection

SUBSET = range(0, 72, 3)


def teacher(data, *, image_size: int = 32) -> TeacherForward:
    return TeacherForward(
        Projection(4, seed=1, image_size=image_size),
        num_classes=4,
        mean=data.mean,
        std=data.std,
        device=torch.device("cpu"),
        precision="fp32",
    )


def make_live(beton: Path, **changes: object) -> LiveLoader:
    opened = open_beton(beton)
    image_size = changes.get("teacher_size") or 32
    return LiveLoader(
        opened,
        teacher(opened.manifest, image_size=image_size),
        SUBSET,
        8,
        seed=3,
        num_workers=1,
        **changes,
    )


@pytest.fixture
def cached(tiny_beton, tiny_store) -> Iterator[DistillLoader]:
    with closing(DistillLoader(tiny_beton, tiny_store, SUBSET, 8, seed=3, num_workers=1)) as loader:
        yield loader


def test_its_batches_are_those_of_an_exact_store_of_as_many_views(cached, tiny_beton):
    """Forwards of 8 images in both, as many threads: the same bits."""
    live = make_live(tiny_beton, num_views=3)
    assert len(live) == len(cached) == 3
    for epoch in range(5):
        for ours, theirs in zip(live.epoch(epoch), cached.epoch(epoch), strict=True):
            assert ours.view == theirs.view == 1 + epoch % 3
            assert torch.equal(ours.sample_ids, theirs.sample_ids)
            assert torch.equal(ours.labels, theirs.labels)
            assert torch.equal(ours.images, theirs.images)
            assert torch.equal(ours.rows.logits(), theirs.rows.logits())


def test_without_a_number_of_views_each_epoch_shows_a_fresh_one(tiny_beton):
    live = make_live(tiny_beton)
    assert [live.view(epoch) for epoch in range(5)] == [1, 2, 3, 4, 5]
    assert [batch.view for batch in live.epoch(4)] == [5, 5, 5]


def test_answers_can_be_part_of_a_loss_and_stay_when_the_next_batch_comes(tiny_beton):
    live = make_live(tiny_beton)
    answers = [batch.rows.logits() for batch in live.epoch(0)]
    weight = torch.ones(4, requires_grad=True)
    sum((answer * weight).sum() for answer in answers).backward()
    torch.testing.assert_close(weight.grad, torch.cat(answers).sum(dim=0))


@pytest.mark.parametrize("size", [32, 16])
def test_a_teacher_of_another_size_sees_the_same_views_at_its_own(tiny_beton, size):
    live = make_live(tiny_beton, teacher_size=size)
    data = live.beton.manifest
    ask = teacher(data, image_size=size)
    for batch in live.epoch(1):
        seen = view_pixels(
            live.beton, data.policy, 0, 2, batch.sample_ids.numpy(), image_size=size, num_workers=1
        )
        expected = ask(torch.from_numpy(seen).permute(0, 3, 1, 2))
        # The same pixels, summed in another layout.
        torch.testing.assert_close(batch.rows.logits(), expected, rtol=1e-4, atol=1e-4)
        assert batch.images.shape[-1] == 32


def test_leaving_an_epoch_early_ends_both_readers(tiny_beton):
    """The threads are looked for after every test."""
    live = make_live(tiny_beton, teacher_size=16)
    for _batch in live.epoch(0):
        break
    assert sum(len(batch.labels) for batch in live.epoch(1)) == len(SUBSET)


def test_views_of_another_kind_beside_a_store_are_refused(tiny_beton, tiny_store):
    views = default_views(open_beton(tiny_beton).manifest)
    with pytest.raises(ConfigError, match="views are given with a store"):
        DistillLoader(tiny_beton, tiny_store, views=views)


def test_batch_sizes_are_those_of_every_epoch(cached):
    cached.batch_size = 7
    assert cached.batch_sizes.tolist() == [6, 6, 6, 6]
    for epoch in range(2):
        sizes = [len(batch.labels) for batch in cached.epoch(epoch)]
        assert np.array_equal(sizes, cached.batch_sizes)
