from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from kdcache.data.beton import open_beton
from kdcache.errors import CacheMismatchError
from kdcache.models.weights import load_weights
from kdcache.options import BuildLogitsOptions, EvaluateOptions, TrainOptions, TrainTeacherOptions
from kdcache.store.build.build import build_logits
from kdcache.store.logit_store import LogitStore
from kdcache.training.evaluate import evaluate
from kdcache.training.train import train
from kdcache.training.train_teacher import train_teacher
from kdcache.workspace import Workspace
from tests.teachers import three_classes

TEACHER = "tests.teachers:three_classes"
SIZE = 32
PIXELS = [
    {"pixel_definition": "pillow", "decode": "full"},
    {"pixel_definition": "planes", "decode": "full"},
    {"pixel_definition": "planes", "decode": "scaled"},
]
SHORT = {"epochs": 1, "batch_size": 8, "num_workers": 1, "device": "cpu", "model": "resnet8"}


def build(workspace, **options):
    usual = {"views": 1, "image_size": SIZE, "codec": "float32", "device": "cpu", "num_workers": 1}
    build_logits(BuildLogitsOptions(teacher=TEACHER, workspace=workspace, **(usual | options)))
    return LogitStore.open(next((workspace / "stores").glob("*.zarr")))


@pytest.fixture
def photos(photo_beton, tmp_path):
    """A workspace of 24 JPEGs of 80 to 160 px."""
    workspace = tmp_path / "workspace"
    shutil.copytree(photo_beton.parent, workspace)
    return workspace


@pytest.mark.parametrize("pixels", PIXELS, ids=lambda pixels: "-".join(pixels.values()))
def test_rows_are_answers_to_the_pixels_of_the_definition(photos, pixels):
    store = build(photos, **pixels)
    beton = open_beton(photos / "train.beton")
    about, data = store.manifest, beton.manifest
    assert (about.pixel_definition, about.decode) == tuple(pixels.values())
    given = {"definition": about.pixel_definition, "decode": about.decode}
    for view in (0, 1):
        seen = beton.pixels(beton.sample_ids, view, about.policy, SIZE, **given)
        images = torch.from_numpy((seen / 255 - data.mean) / data.std).permute(0, 3, 1, 2)
        with torch.inference_mode():
            expected = three_classes().double()(images).numpy()
        expected -= expected.max(axis=1, keepdims=True)
        found = store.logits(beton.sample_ids, view)
        found = found - found.max(axis=1, keepdims=True)
        # Sums of 3,072 products in float32.
        np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pixel_definition": "planes"}, "pixel_definition is 'planes', found 'pillow'"),
        ({"decode": "scaled"}, "decode is 'scaled', found 'full'"),
    ],
)
def test_other_pixels_are_another_store(photos, changed, message):
    build(photos)
    with pytest.raises(CacheMismatchError, match=message):
        build(photos, **changed)


def test_a_student_sees_the_pixels_of_its_store_and_records_them(photos):
    build(photos, pixel_definition="planes", decode="scaled")
    options = {"workspace": photos, "subset": "full", **SHORT}
    for asked in ({"pixel_definition": "pillow"}, {"decode": "full"}):
        (name,) = asked
        with pytest.raises(CacheMismatchError, match=f"teacher of .* saw pixels with {name} "):
            train(TrainOptions(**options, **asked))
    run = train(TrainOptions(**options)).path
    about = load_weights(run / "last.safetensors")[1]
    assert (about["pixel_definition"], about["decode"]) == ("planes", "scaled")


def test_without_a_store_the_options_decide(photos):
    options = {"workspace": photos, "subset": "full", "kd": False, **SHORT}
    run = train(TrainOptions(**options, pixel_definition="planes")).path
    about = load_weights(run / "last.safetensors")[1]
    assert (about["pixel_definition"], about["decode"]) == ("planes", "full")


def test_a_model_is_evaluated_on_the_pixels_that_it_was_trained_on(photos):
    train_teacher(
        TrainTeacherOptions(
            workspace=photos, name="own", pixel_definition="planes", image_size=SIZE, **SHORT
        )
    )
    path = Workspace(photos).teacher("own")
    options = {"workspace": photos, "split": "train", "device": "cpu", "num_workers": 1}

    def nll(**asked):
        return evaluate(EvaluateOptions(weights=str(path), **options, **asked)).nll

    assert nll() == nll(pixel_definition="planes") != nll(pixel_definition="pillow")
    assert nll() != nll(decode="scaled")
