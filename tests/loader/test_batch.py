"""A batch gives the student's input and the teacher's logits, and moves between devices whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils import send_to_device
from lightning_fabric.utilities.apply_func import move_data_to_device

from kdcache.errors import ConfigError
from kdcache.loader.batch import Batch
from kdcache.loader.distill import DistillLoader
from kdcache.store.codecs.codec import Codec

SUBSET = range(0, 72, 5)


@pytest.fixture
def batch(tiny_beton, tiny_store) -> Batch:
    with DistillLoader(tiny_beton, tiny_store, SUBSET, 16, num_workers=1) as loader:
        (batch,) = loader
    return batch._replace(weights=torch.rand(len(batch.labels)))


def tensors(batch: Batch) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    batch.map_tensors(lambda tensor: found.append(tensor) or tensor)
    return [*found, batch.normalize.scale, batch.normalize.offset]


def test_normalized_images_are_those_of_the_manifests_mean_and_std(batch, tiny_beton):
    with DistillLoader(tiny_beton, None, SUBSET, 16, num_workers=1) as loader:
        data = loader.beton.manifest
    images = batch.images.permute(0, 2, 3, 1).numpy()
    expected = (images / 255 - np.array(data.mean)) / np.array(data.std)
    found = batch.normalized()
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    # float32 against float64.
    np.testing.assert_allclose(found.permute(0, 2, 3, 1).numpy(), expected, rtol=0, atol=1e-5)


def test_teacher_logits_are_the_decoded_rows(batch, tiny_store):
    logits = batch.teacher_logits()
    assert (logits.shape, logits.dtype) == ((15, 4), torch.float32)
    stored = tiny_store.logits(batch.sample_ids.numpy(), batch.view)
    assert np.array_equal(logits.numpy(), np.asarray(stored))


def test_without_a_teacher_there_are_no_logits(tiny_beton):
    with DistillLoader(tiny_beton, None, SUBSET, 16, num_workers=1) as loader:
        (batch,) = loader
    with pytest.raises(ConfigError, match="Open the DistillLoader with a store"):
        batch.teacher_logits()
    assert batch.to("cpu").rows is None


MOVES: dict[str, Callable[[Batch, str], Any]] = {
    "to": lambda batch, device: batch.to(device),
    "to, not blocking": lambda batch, device: batch.to(device, non_blocking=True),
    "lightning": move_data_to_device,
    "accelerate": send_to_device,
    "accelerate, not blocking": lambda b, device: send_to_device(b, device, non_blocking=True),
    "lightning, in a list": lambda batch, device: move_data_to_device([batch], device)[0],
    "accelerate, in a dict": lambda batch, device: send_to_device({"a": batch}, device)["a"],
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES.keys())
def test_a_batch_moves_whole(batch, move):
    """The meta device holds no values: what stayed behind would be on the CPU."""
    moved = move(batch, "meta")
    assert isinstance(moved, Batch)
    assert {tensor.device.type for tensor in tensors(moved)} == {"meta"}
    assert len(tensors(moved)) == 7
    assert isinstance(moved.rows.codec, Codec)
    assert moved.view == batch.view
    assert {tensor.device.type for tensor in tensors(batch)} == {"cpu"}, "the loader's own stay"
    assert moved.normalized().shape == batch.images.shape


@pytest.mark.gpu
@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES.keys())
def test_batches_that_were_moved_keep_their_content(tiny_beton, tiny_store, move):
    """Kept to the end of the epoch, while the loader refills its buffers."""
    with DistillLoader(tiny_beton, tiny_store, None, 7, num_workers=1) as loader:
        busy = torch.randn(4096, 4096, device="cuda")
        kept = []
        for batch in loader:
            for _ in range(20):
                busy = (busy @ busy).clamp(-1, 1)
            kept.append(move(batch, "cuda"))
        for ours, theirs in zip(kept, loader.epoch(0), strict=True):
            assert {tensor.device.type for tensor in tensors(ours)} == {"cuda"}
            assert torch.equal(ours.images.cpu(), theirs.images)
            assert torch.equal(ours.sample_ids.cpu(), theirs.sample_ids)
            assert torch.equal(ours.teacher_logits().cpu(), theirs.teacher_logits())
