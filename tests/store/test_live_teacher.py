"""A live teacher on batches of another size, beside what the store holds of the same views."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdcache.compute.device import resolve_device
from kdcache.data.beton import open_beton
from kdcache.reader.batches import PixelReader
from kdcache.store.logit_store import LogitStore
from kdcache.teacher.forward import TeacherForward
from kdcache.teacher.tolerance import TOLERANCES, relative_differences
from tests.store import teachers
from tests.store.builds import NUM_SAMPLES, build

CONVOLUTIONAL = "tests.store.teachers:convolutional"


def live(store: LogitStore, workspace, precision, device, batch_size: int) -> np.ndarray:
    """Return what a teacher in a training loop would say of view 1, in an order of its own."""
    about = store.manifest
    beton = open_beton(workspace / "train.beton")
    forward = TeacherForward(
        teachers.convolutional(),
        num_classes=about.classes,
        mean=beton.manifest.mean,
        std=beton.manifest.std,
        device=device,
        precision=precision,
    )
    reader = PixelReader(beton, about.views, batch_size=batch_size)
    order = np.random.default_rng(0).permutation(NUM_SAMPLES)
    batches = np.split(order, range(batch_size, NUM_SAMPLES, batch_size))
    answers = [forward(seen.images).cpu() for seen in reader.read(batches, 1)]
    logits = torch.cat(answers).numpy()
    return logits[np.argsort(order)]


def shares(workspace, precision, device, *, live_precision=None) -> np.ndarray:
    """Return each row's difference as a share of its range, the largest of several batch sizes."""
    result = build(workspace, CONVOLUTIONAL, views=1, precision=precision, device=device.type)
    store = LogitStore.open(result["path"])
    stored = store.logits(np.arange(NUM_SAMPLES), 1)
    found = [live(store, workspace, live_precision or precision, device, size) for size in (5, 64)]
    return np.max([relative_differences(stored, logits) for logits in found], axis=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_stored_rows_are_those_of_a_live_teacher_within_the_bound(workspace, precision):
    found = shares(workspace, precision, torch.device("cpu"))
    assert found.max() <= TOLERANCES[precision]


def test_the_bound_of_a_precision_tells_it_from_one_with_fewer_bits(workspace):
    found = shares(workspace, "bf16", torch.device("cpu"), live_precision="fp32")
    assert np.median(found) > TOLERANCES["fp32"]
    assert found.max() <= TOLERANCES["bf16"]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_a_gpu_stores_what_it_answers_live_within_the_bound(workspace, precision):
    found = shares(workspace, precision, resolve_device("cuda"))
    assert found.max() <= TOLERANCES[precision]


@pytest.mark.gpu
def test_a_recorded_pass_stores_the_bits_of_one_that_is_not(workspace, monkeypatch):
    options = {"views": 1, "device": "cuda", "precision": "fp16"}
    rows = []
    for name in ("recorded", "plain"):
        path = str(workspace / f"{name}.zarr")
        store = LogitStore.open(build(workspace, CONVOLUTIONAL, store=path, **options)["path"])
        rows.append(store.logits(np.arange(NUM_SAMPLES), 1))
        monkeypatch.setattr(TeacherForward, "record", lambda *_: None)
    np.testing.assert_array_equal(*rows)
