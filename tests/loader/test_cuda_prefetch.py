"""Batches on a CUDA device are those of the host; on a CPU nothing is copied."""

from __future__ import annotations

import pytest
import torch

from kdcache.loader.distill import DistillLoader

SUBSET = range(0, 72, 2)


def make_loader(beton, store, device: str) -> DistillLoader:
    return DistillLoader(beton, store, SUBSET, 7, num_workers=1, device=device)


def test_on_a_cpu_images_lie_in_the_readers_buffers(tiny_beton, tiny_store):
    loader = make_loader(tiny_beton, tiny_store, "cpu")
    places = {batch.images.data_ptr() for batch in loader.epoch(0)}
    # For six batches: the loop's, the one that is delivered, and two that are decoded ahead.
    assert len(places) == 4
    rows = [batch.rows.encoded for batch in loader.epoch(1)]
    assert len({part.untyped_storage().data_ptr() for part in rows}) == 1, "slices of staged rows"
    loader.close()


@pytest.mark.gpu
def test_batches_on_a_device_are_those_of_the_host(tiny_beton, tiny_store):
    """Kept to the end of the epoch, while the reader fills its buffers again."""
    there = make_loader(tiny_beton, tiny_store, "cuda")
    here = make_loader(tiny_beton, tiny_store, "cpu")
    for epoch in range(3):
        kept = list(there.epoch(epoch))
        for ours, theirs in zip(kept, here.epoch(epoch), strict=True):
            assert ours.images.is_cuda
            assert ours.images.stride() == theirs.images.stride()
            for name in ("images", "labels", "sample_ids"):
                assert torch.equal(getattr(ours, name).cpu(), getattr(theirs, name)), name
            assert torch.equal(ours.rows.encoded.cpu(), theirs.rows.encoded)
    there.close()
    here.close()


@pytest.mark.gpu
def test_a_step_that_runs_long_does_not_see_the_next_batch(tiny_beton, tiny_store):
    """The device is kept busy, so that copies of later batches overtake what reads this one."""
    loader = make_loader(tiny_beton, tiny_store, "cuda")
    busy = torch.randn(4096, 4096, device="cuda")
    sums = []
    for batch in loader.epoch(0):
        for _ in range(20):
            busy = (busy @ busy).clamp(-1, 1)
        sums.append(batch.images.long().sum())
    here = make_loader(tiny_beton, tiny_store, "cpu")
    expected = [int(batch.images.long().sum()) for batch in here.epoch(0)]
    here.close()
    assert torch.stack(sums).tolist() == expected
    loader.close()
