"""The penultimate activations of the clean view: what they are, and when they can be had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import normalize

from kdcache.data.beton import open_beton
from kdcache.errors import CacheMismatchError, TeacherError
from kdcache.reader.batches import view_pixels
from kdcache.store.logit_store import LogitStore
from tests.store.builds import NUM_SAMPLES, WITH_HEAD, build
from tests.store.conftest import snapshot
from tests.store.teachers import with_head


def independent_features(workspace: Path) -> np.ndarray:
    """Return what enters `with_head`'s last layer, without our forward pass."""
    beton = open_beton(workspace / "train.beton")
    about = beton.manifest
    images = torch.from_numpy(view_pixels(beton, about.policy, 0, 0, np.arange(NUM_SAMPLES)))
    images = normalize(images.permute(0, 3, 1, 2).float() / 255, about.mean, about.std)
    seen: list[torch.Tensor] = []
    model = with_head().eval()
    model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        model(images)
    return seen[0].numpy()


def test_the_features_are_the_input_of_the_last_layer(workspace):
    build(workspace, WITH_HEAD, views=1, features=True)
    store = LogitStore.open(workspace / "stores/with_head.zarr")
    features = store.features()
    assert (features.shape, features.dtype) == ((NUM_SAMPLES, 6), np.float16)
    expected = independent_features(workspace)
    # Half a unit of float16's last place, and sums of 3,072 float32 products in another order.
    np.testing.assert_allclose(features.astype(np.float32), expected, rtol=2**-11, atol=1e-4)
    assert (np.abs(expected).max(axis=0) > 0.1).all()  # no column is trivially zero
    # The head makes the logits of them, up to that rounding.
    head = with_head().head
    logits = head(torch.from_numpy(features.astype(np.float32))).detach().numpy()
    np.testing.assert_allclose(logits, store.logits(np.arange(NUM_SAMPLES), 0), atol=0.02)


def test_features_change_nothing_else(workspace):
    path = Path(build(workspace, WITH_HEAD, views=1, features=True)["path"])
    with_features = snapshot(path)
    build(workspace, WITH_HEAD, views=1, overwrite=True)
    without = snapshot(path)
    assert without == {
        key: content for key, content in with_features.items() if not key.startswith("features/")
    }


def test_features_can_be_added_to_a_finished_store(workspace):
    path = Path(build(workspace, WITH_HEAD, views=1)["path"])
    before = snapshot(path)
    with pytest.raises(CacheMismatchError, match=r"holds no features\. .*features"):
        LogitStore.open(path).features()
    result = build(workspace, WITH_HEAD, views=1, features=True)
    assert result["teacher_forwards"] == NUM_SAMPLES  # of the clean view alone
    after = snapshot(path)
    assert {key: after[key] for key in before} == before
    build(workspace, WITH_HEAD, views=1, features=True, overwrite=True)
    assert snapshot(path) == after
    # Once there, they are kept whole by a build that does not ask for them.
    (path / "features/c/3/0").unlink()
    assert build(workspace, WITH_HEAD, views=1)["teacher_forwards"] == 8
    assert snapshot(path) == after


def test_features_that_may_not_be_added_leave_a_store_that_opens(workspace):
    path = Path(build(workspace, WITH_HEAD, views=1)["path"])
    before = snapshot(path)
    with pytest.raises(CacheMismatchError, match="batch_size is 4, found 8"):
        build(workspace, WITH_HEAD, views=1, features=True, batch_size=4)
    assert snapshot(path) == before


def test_a_teacher_without_a_last_layer_is_refused_before_anything_is_replaced(
    store_path, workspace
):
    before = snapshot(store_path)
    for overwrite in (False, True):
        with pytest.raises(TeacherError, match="Projection and ends in no linear layer with 4 out"):
            build(workspace, features=True, overwrite=overwrite)
    assert snapshot(store_path) == before


def test_a_teacher_that_answers_nan_replaces_no_store(store_path, workspace):
    before = snapshot(store_path)
    with pytest.raises(TeacherError, match=r"view 0 of sample 0 .*8 samples"):
        build(
            workspace,
            "tests.teachers:not_a_number",
            store=str(store_path),
            overwrite=True,
        )
    assert snapshot(store_path) == before


def test_a_teacher_that_does_not_fit_the_images_replaces_no_store(store_path, workspace):
    before = snapshot(store_path)
    with pytest.raises(TeacherError, match=r"\(8, 5\)"):
        build(workspace, "tests.teachers:five_classes", store=str(store_path), overwrite=True)
    assert snapshot(store_path) == before
