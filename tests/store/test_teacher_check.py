"""What a build says of its teacher, and when it warns."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from kdcache.data.beton import open_beton
from kdcache.data.pack import pack
from kdcache.errors import CacheMismatchError
from kdcache.options import BuildLogitsOptions, PackOptions
from kdcache.reader.batches import view_pixels
from kdcache.store.build.build import build_logits
from kdcache.store.build.teacher_check import check_teacher
from kdcache.store.logit_store import LogitStore
from kdcache.teacher.forward import TeacherForward
from tests import teachers
from tests.conftest import write_images


@pytest.fixture
def workspace(tmp_path: Path, tiny_workspace: Path) -> Path:
    """A workspace with both splits of the tiny images, and nothing built."""
    for file in tiny_workspace.glob("*.*"):
        if file.stem in {"train", "val"} or file.name.endswith(".digests.npy"):
            (tmp_path / file.name).symlink_to(file)
    return tmp_path


def forward_of(store: LogitStore) -> TeacherForward:
    about = store.manifest
    return TeacherForward(
        teachers.projection(),
        num_classes=about.classes,
        mean=about.mean[0],
        std=about.std[0],
        device=torch.device("cpu"),
        precision="fp32",
    )


def top1_of(workspace: Path, split: str) -> float:
    """Answer like the teacher, in float64 and without our forward pass."""
    beton = open_beton(workspace / f"{split}.beton")
    about = open_beton(workspace / "train.beton").manifest
    seen = view_pixels(beton, about.policy, 0, 0, beton.sample_ids) / 255
    images = torch.from_numpy((seen - np.array(about.mean)) / np.array(about.std))
    flat = images.permute(0, 3, 1, 2).flatten(1)
    logits = flat @ teachers.projection().weight.detach().double().T
    return 100 * float((logits.argmax(dim=1).numpy() == beton.labels).mean())


def test_a_build_measures_its_teacher_on_both_splits_once(workspace):
    options = BuildLogitsOptions(
        teacher="tests.teachers:projection", workspace=workspace, views=0, device="cpu"
    )
    built = build_logits(options).to_json()
    assert built["train_quality"]["top1"] == pytest.approx(top1_of(workspace, "train"))
    assert built["val_quality"]["top1"] == pytest.approx(top1_of(workspace, "val"))
    again = build_logits(options).to_json()
    assert (again["train_quality"], again["val_quality"]) == (None, None)


@pytest.mark.parametrize(("above", "warns"), [(0.9, False), (1.1, True)])
def test_a_teacher_far_below_what_its_file_says_is_warned_about(
    tiny_store, workspace, caplog, above, warns
):
    top1 = top1_of(workspace, "val")
    with caplog.at_level(logging.WARNING):
        check_teacher(
            tiny_store,
            forward_of(tiny_store),
            workspace / "val.beton",
            reported_top1=top1 + above,
        )
    assert ("normalisation, image size" in caplog.text) is warns


def test_without_an_evaluation_split_the_training_data_are_measured(tiny_store, tmp_path):
    train, val = check_teacher(
        tiny_store, forward_of(tiny_store), tmp_path / "val.beton", reported_top1=99.0
    )
    assert val is None
    correct = tiny_store.stats["correct"]
    assert train.top1 == pytest.approx(100 * correct.mean())
    assert train.nll == pytest.approx(tiny_store.scores["cross_entropy"].mean(), rel=1e-6)


def test_an_evaluation_split_of_other_classes_is_refused_before_the_pass(workspace):
    images = write_images(workspace / "other", count=16, classes=4, sides=(32, 32))
    (images / "class_0").rename(images / "zebra")
    pack(PackOptions(str(images), workspace=workspace / "w", val_fraction=0.5))
    for file in (workspace / "w").glob("val.*"):
        (workspace / file.name).unlink(missing_ok=True)
        file.rename(workspace / file.name)
    options = BuildLogitsOptions(
        teacher="tests.teachers:projection", workspace=workspace, views=0, device="cpu"
    )
    with pytest.raises(
        CacheMismatchError, match=r"val\.beton has other classes than .*train\.beton"
    ):
        build_logits(options)
    assert not list(workspace.glob("stores/*.zarr"))
