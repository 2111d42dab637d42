"""Stores of teachers whose images and outputs their owner states: rows, identity, verify."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kdcache.data.beton import open_beton
from kdcache.errors import CacheMismatchError, ConfigError, TeacherError
from kdcache.models.registry import make_model
from kdcache.reader.batches import view_pixels
from kdcache.store.logit_store import LogitStore
from tests.store.builds import NUM_SAMPLES, build, check, flip
from tests.store.conftest import snapshot
from tests.store.teachers import Failing

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
SOFTMAX = "tests.store.teachers:softmax"


def own_checkpoint(folder: Path, model: str = "resnet8") -> nn.Module:
    """Write weights without metadata to own.safetensors, and return the model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        own = make_model(model, num_classes=4, image_size=32).eval()
    save_file(own.state_dict(), folder / "own.safetensors")
    return own


def relative_gap(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference of centred rows, as a fraction of the largest range."""
    gap = (found - found.mean(1, keepdims=True)) - (expected - expected.mean(1, keepdims=True))
    return float(np.abs(gap).max() / np.ptp(expected, axis=1).max())


@pytest.mark.parametrize(
    ("words", "mean", "std"),
    [
        ("imagenet", IMAGENET["mean"], IMAGENET["std"]),
        ("none", [0.0] * 3, [1.0] * 3),
    ],
)
def test_the_rows_are_the_owners_logits_on_the_owners_images(workspace, tmp_path, words, mean, std):
    own = own_checkpoint(tmp_path)
    result = build(
        workspace, str(tmp_path / "own.safetensors"), arch="resnet8", views=1, teacher_mean=words
    )
    beton = open_beton(workspace / "train.beton")
    store = LogitStore.open(result["path"])
    assert (store.manifest.mean, store.manifest.std) == ([mean], [std])
    for view in (0, 1):
        seen = view_pixels(beton, beton.manifest.policy, 0, view, beton.sample_ids) / 255
        images = torch.from_numpy((seen - mean) / std).permute(0, 3, 1, 2).float()
        with torch.inference_mode():
            expected = own(images).numpy()
        found = store.logits(np.arange(NUM_SAMPLES), view)
        assert relative_gap(found, expected) < 1e-4


def test_another_normalisation_is_another_store_and_verify_uses_the_stores(workspace, tmp_path):
    own_checkpoint(tmp_path)
    own = str(tmp_path / "own.safetensors")
    options = {"arch": "resnet8", "views": 1, "store": str(workspace / "stores/own.zarr")}
    build(workspace, own, teacher_mean="imagenet", **options)
    with pytest.raises(CacheMismatchError, match=r"mean is .*, found \[\[0\.485"):
        build(workspace, own, **options)
    store = options["store"]
    found = check(workspace, teacher=own, arch="resnet8", store=store)
    assert found["rows_compared"] == 2 * NUM_SAMPLES
    before = snapshot(Path(store))
    flip(next(Path(store).glob("views/1/rows/c/*/0")))
    assert len(check(workspace, teacher=own, arch="resnet8", store=store, repair=True)["repaired"])
    assert snapshot(Path(store)) == before


def test_the_two_stems_of_the_same_tensors_are_two_stores(workspace, tmp_path):
    own_checkpoint(tmp_path, "mobilenet_v2")
    own = str(tmp_path / "own.safetensors")
    options = {"arch": "mobilenet_v2", "views": 0, "store": str(workspace / "stores/own.zarr")}
    with pytest.raises(ConfigError, match="stem is not given, expected small or standard"):
        build(workspace, own, **options)
    result = build(workspace, own, stem="standard", **options)
    about = LogitStore.open(result["path"]).manifest
    assert about.teacher_arch == "mobilenet_v2 (standard stem)"
    with pytest.raises(CacheMismatchError, match="teacher_digest is "):
        build(workspace, own, stem="small", **options)
    words = {"teacher": own, "arch": "mobilenet_v2", "store": options["store"]}
    assert check(workspace, stem="standard", **words)["rows_compared"] == NUM_SAMPLES
    with pytest.raises(TeacherError, match=r"mobilenet_v2 \(standard stem\).* \(small stem\)"):
        check(workspace, stem="small", **words)


def test_probabilities_are_refused_before_anything_is_written(workspace):
    with pytest.raises(TeacherError, match="teacher softmax returns probabilities"):
        build(workspace, SOFTMAX, views=0)
    assert not (workspace / "stores" / "softmax.zarr").exists()


def test_the_logarithm_of_probabilities_is_stored(workspace, tiny_store):
    result = build(workspace, SOFTMAX, views=1, teacher_output="probabilities")
    store = LogitStore.open(result["path"])
    ids = np.arange(NUM_SAMPLES)
    for view in (0, 1):
        expected = torch.from_numpy(tiny_store.logits(ids, view)).double().log_softmax(dim=1)
        found = torch.from_numpy(store.logits(ids, view)).double().log_softmax(dim=1)
        # float32 holds no probability below 1.2e-38, whose logarithm is -87.3.
        torch.testing.assert_close(found, expected.clamp_min(-87.3), rtol=1e-4, atol=1e-3)
    assert store.manifest.teacher_arch == f"{SOFTMAX} (probabilities)"
    words = {"teacher": SOFTMAX, "store": str(result["path"])}
    assert check(workspace, teacher_output="probabilities", **words)["rows_compared"]
    with pytest.raises(TeacherError, match=rf"{SOFTMAX} \(probabilities\).*, this one is"):
        check(workspace, **words)
    flip(next(Path(result["path"]).glob("views/1/rows/c/*/0")))
    with pytest.raises(TeacherError, match=r"Nothing was changed.*teacher_output as for build"):
        check(workspace, repair=True, store=str(result["path"]))
    repaired = check(
        workspace, repair=True, store=str(result["path"]), teacher_output="probabilities"
    )
    assert len(repaired["repaired"]) == 1


def test_nan_for_a_checked_image_is_refused_before_anything_is_written(workspace):
    beton = open_beton(workspace / "train.beton")
    about = beton.manifest
    seen = view_pixels(beton, "clean", 0, 0, [20])[0] / 255  # one of the images that are drawn
    image = torch.from_numpy((seen - about.mean) / about.std).permute(2, 0, 1).float()
    Failing.bad = image
    name = about.class_names[beton.labels[20]]
    try:
        with pytest.raises(TeacherError, match=rf"for sample 20 \(class '{name}'\) and 0 more"):
            build(workspace, "tests.store.teachers:failing", views=0)
    finally:
        Failing.bad = None
    assert not list(workspace.glob("stores/*.zarr"))


def test_a_warning_comes_before_the_pass_and_the_pass_goes_on(workspace, caplog):
    with caplog.at_level("INFO"):
        result = build(workspace, "tests.teachers:projection", views=0)
    messages = [record.getMessage() for record in caplog.records]
    checked = next(i for i, text in enumerate(messages) if "labelled training images" in text)
    started = next(i for i, text in enumerate(messages) if "images through the teacher" in text)
    assert checked < started
    assert result["teacher_forwards"] == NUM_SAMPLES


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("one_channel", r"fails on 8 images of 32 px with 3 channels, RuntimeError"),
        ("asks_for_more", r"fails on 8 images .*, TypeError: .*'labels'"),
        ("too_many", r"the teacher too_many returns \(8, 5\) for 8 images"),
    ],
)
def test_a_model_that_does_not_take_the_images_is_named_in_one_line(workspace, name, match):
    with pytest.raises(TeacherError, match=match):
        build(workspace, f"tests.store.teachers:{name}", views=0)
