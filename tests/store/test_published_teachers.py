"""Stores of teachers that are shown other images than the student, or asked together."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.special import log_softmax, logsumexp
from torch.nn.modules.module import register_module_forward_pre_hook

from kdcache.data.beton import open_beton
from kdcache.data.pack import pack
from kdcache.data.policy import CENTER_CROP_RATIO
from kdcache.data.views import view_parameters
from kdcache.errors import CacheMismatchError, TeacherError
from kdcache.loader.distill import DistillLoader
from kdcache.models.cifar_resnet import CifarResNet
from kdcache.options import PackOptions, TrainOptions
from kdcache.reader.batches import view_pixels
from kdcache.reader.probe import probe_pixels
from kdcache.selection.subset import Subset
from kdcache.store.logit_store import LogitStore
from kdcache.training.train import train
from kdcache.workspace import Workspace, teacher_name
from tests.conftest import write_images
from tests.store.builds import PROJECTION, build, check, flip
from tests.store.conftest import snapshot
from tests.teacher.published_models import (
    CROP,
    MEAN,
    RESIZE,
    STD,
    TinyNet_Weights,
    publish,
    tiny_net,
)
from tests.teacher.server import serving
from tests.teachers import other_projection, projection

OTHER = "tests.teachers:other_projection"
PUBLISHED = "kdcache_tiny"
SHARE = CROP / RESIZE
SMALL = "tests.store.teachers:small"


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A workspace with 48 JPEGs of 80 to 160 px in 4 classes, 12 of them for evaluation."""
    folder = write_images(
        tmp_path_factory.mktemp("photos") / "images", count=48, classes=4, sides=(80, 160)
    )
    workspace = folder.parent / "workspace"
    options = {"val_fraction": 0.25, "num_workers": 1}
    pack(PackOptions(str(folder), workspace=workspace, **options))
    return workspace


@pytest.fixture(scope="module")
def built(photos, tmp_path_factory) -> Iterator[Path]:
    """`photos` with a store of published weights, which students see at 16 px. Read only."""
    root = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch, serving(root) as server:
        patch.setenv("TORCH_HOME", str(root / "torch"))
        publish(TinyNet_Weights.SECOND, tiny_net(1).state_dict(), root, server.address)
        build(photos, PUBLISHED, views=2, image_size=16)
        yield photos


@pytest.fixture
def workspace_of_photos(built, tmp_path) -> Path:
    """A copy of `built`, to write to."""
    return Path(shutil.copytree(built, tmp_path / "workspace"))


def store_of(workspace: Path, name: str = PUBLISHED) -> LogitStore:
    return LogitStore.open(Workspace(workspace).store(name))


def published_logits(workspace: Path, split: str, view: int) -> np.ndarray:
    """Answer in float64, from pixels cut and normalised as the publisher says."""
    beton = open_beton(Workspace(workspace).beton(split))
    seen = view_pixels(
        beton,
        beton.manifest.policy,
        0,
        view,
        beton.sample_ids,
        image_size=CROP,
        center_crop_ratio=SHARE,
        clean_filter="bicubic",
    )
    images = torch.from_numpy((seen / 255 - MEAN) / STD).permute(0, 3, 1, 2)
    model = tiny_net(1).double()
    model.gain = 2.0
    with torch.inference_mode():
        return model(images).numpy()


def test_the_rows_are_answers_to_images_as_the_publisher_evaluates(built):
    store = store_of(built)
    assert store.manifest.teachers == [PUBLISHED]
    about = store.manifest
    assert (about.image_size, about.teacher_size, about.center_crop_ratio) == (16, CROP, SHARE)
    assert about.clean_filter == "bicubic"
    assert (about.mean, about.std) == ([MEAN], [STD])
    for view in range(3):
        expected = published_logits(built, "train", view)
        # Sums of 72 products of values of at most 5, in float32.
        np.testing.assert_allclose(store.logits(store.sample_ids, view), expected, atol=2e-5)


def test_the_teachers_quality_is_measured_on_its_own_images(workspace_of_photos):
    built = build(workspace_of_photos, PUBLISHED, views=0, image_size=16, overwrite=True)
    for split, found in (("train", built["train_quality"]), ("val", built["val_quality"])):
        beton = open_beton(Workspace(workspace_of_photos).beton(split))
        logits = published_logits(workspace_of_photos, split, 0)
        nll = -log_softmax(logits, axis=1)[np.arange(len(beton)), beton.labels].mean()
        assert found["nll"] == pytest.approx(nll, rel=1e-5)


def test_the_student_sees_the_same_boxes_at_its_own_size(built):
    store, beton = store_of(built), open_beton(Workspace(built).beton("train"))
    about = store.manifest
    loader = DistillLoader(beton, store, batch_size=36)
    for epoch in (0, 1):
        for batch in loader.epoch(epoch):
            ids = batch.sample_ids.numpy()
            own = view_pixels(beton, about.policy, 0, 1 + epoch, ids, image_size=16)
            assert np.array_equal(batch.images.permute(0, 2, 3, 1).numpy(), own)
            # Box and flip are drawn without the size: the rows beside are answers to these boxes.
            expected = published_logits(built, "train", 1 + epoch)[ids]
            np.testing.assert_allclose(batch.rows.logits().numpy(), expected, atol=2e-5)
    loader.close()


def test_the_pixel_probe_is_of_the_students_pixels(built):
    store, beton = store_of(built), open_beton(Workspace(built).beton("train"))
    views = store.manifest.views
    assert (views.image_size, views.center_crop_ratio) == (16, SHARE)
    assert np.array_equal(store.pixel_probe, probe_pixels(beton, views))
    assert not np.array_equal(store.pixel_probe, probe_pixels(beton, store.manifest.teacher_views))


def test_the_clean_views_box_is_the_publishers_square():
    (own,) = view_parameters("rrc", 0, 0, [3], (120, 100), center_crop_ratio=SHARE)
    assert own.tolist() == [(120 - 92) // 2, 4, 92, 92, 0]
    others = [
        view_parameters("rrc", 0, 1, [3], (120, 100), center_crop_ratio=s)
        for s in (SHARE, CENTER_CROP_RATIO)
    ]
    assert np.array_equal(*others)


def test_a_student_has_the_datas_normalisation_and_the_usual_evaluation(built, tmp_path):
    options: dict[str, Any] = {"epochs": 1, "lr": 1e-12, "batch_size": 12, "device": "cpu"}
    options |= {"model": "resnet8", "subset": "full", "alpha": 0.0, "num_workers": 1}
    seen: list[torch.Tensor] = []

    def watch(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if isinstance(module, CifarResNet) and not module.training:
            seen.append(inputs[0].clone())

    hook = register_module_forward_pre_hook(watch)
    train(TrainOptions(workspace=built, teacher=PUBLISHED, out=tmp_path / "run", **options))
    hook.remove()
    images = torch.cat(seen)
    beton = open_beton(Workspace(built).beton("val"))
    data = open_beton(Workspace(built).beton("train")).manifest
    usual = view_pixels(beton, data.policy, 0, 0, beton.sample_ids, image_size=16)
    expected = torch.from_numpy((usual / 255 - data.mean) / data.std).permute(0, 3, 1, 2)
    torch.testing.assert_close(images[: len(expected)].double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"teacher_size": 32}, "teacher_size is 32, found 24"),
        ({"image_size": 24}, "image_size is 24, found 16"),
    ],
)
def test_another_size_is_another_store(built, options, named):
    with pytest.raises(CacheMismatchError, match=named):
        build(built, PUBLISHED, **({"views": 3, "image_size": 16} | options))


def test_the_same_weights_from_a_file_are_shown_other_images(workspace_of_photos):
    own = Workspace(workspace_of_photos).teacher("own")
    own.parent.mkdir()
    save_file(tiny_net(1).state_dict(), own)
    store = Workspace(workspace_of_photos).store(PUBLISHED)
    options = {"teacher": "own", "arch": PUBLISHED, "store": str(store)}
    with pytest.raises(
        TeacherError, match=r"own uses other preprocessing .* center_crop_ratio is 0\.875"
    ):
        check(workspace_of_photos, **options)
    flip(next(store.glob("views/1/rows/c/*/0")))
    before = snapshot(store)
    with pytest.raises(TeacherError, match=r"Use teacher .*: kdcache_tiny$"):
        check(workspace_of_photos, repair=True, **options)
    assert snapshot(store) == before


def test_verify_asks_the_publishers_teacher_again_and_repairs_with_it(workspace_of_photos):
    path = Workspace(workspace_of_photos).store(PUBLISHED)
    options = {"store": str(path)}
    found = check(workspace_of_photos, teacher=PUBLISHED, **options)
    assert found["rows_compared"] == 3 * 36
    before = snapshot(path)
    flip(next(path.glob("views/1/rows/c/*/0")))
    assert len(check(workspace_of_photos, repair=True, **options)["repaired"]) == 1
    assert snapshot(path) == before


# Teachers at another size


def test_the_teacher_sees_the_same_views_at_its_own_size(workspace):
    built = build(workspace, SMALL, views=1, teacher_size=16)
    store, beton = LogitStore.open(built["path"]), open_beton(Workspace(workspace).beton("train"))
    data = beton.manifest
    weight = projection_of_16().double()
    for view in (0, 1):
        seen = view_pixels(beton, data.policy, 0, view, beton.sample_ids, image_size=16) / 255
        images = torch.from_numpy((seen - data.mean) / data.std).permute(0, 3, 1, 2)
        expected = (images.flatten(1) @ weight.T).numpy()
        # Sums of 768 products in float32.
        np.testing.assert_allclose(store.logits(store.sample_ids, view), expected, atol=1e-4)
    assert (store.manifest.image_size, store.manifest.teacher_size) == (32, 16)
    assert check(workspace, store=built["path"], teacher=SMALL)["rows_compared"] == 2 * 72


def projection_of_16() -> torch.Tensor:
    from tests.store.teachers import small

    return small().weight.detach()


def test_a_teacher_that_cannot_take_the_size_says_so_before_a_store_is_made(workspace):
    with pytest.raises(TeacherError, match=r"fails on 8 images of 32 px .*teacher_size"):
        build(workspace, SMALL, views=1)
    assert not Workspace(workspace).store("small").exists()


def test_a_store_for_another_student_size_takes_the_clean_view(workspace):
    """View 0 holds the teacher's answers, which do not depend on what the student sees."""
    build(workspace, PROJECTION, views=0)
    data = open_beton(Workspace(workspace).beton("train")).manifest
    Subset(np.arange(20), {"data_fingerprint": data.fingerprint}).save(workspace / "some.npz")
    found = build(
        workspace,
        PROJECTION,
        views=1,
        subset=str(workspace / "some.npz"),
        image_size=16,
        teacher_size=32,
    )
    assert found["teacher_forwards"] == 20


# Several teachers


def independent_mean(workspace: Path, view: int) -> np.ndarray:
    beton = open_beton(Workspace(workspace).beton("train"))
    data = beton.manifest
    seen = view_pixels(beton, data.policy, 0, view, beton.sample_ids) / 255
    images = torch.from_numpy((seen - data.mean) / data.std).permute(0, 3, 1, 2).flatten(1)
    weights = [model.weight.detach().double() for model in (projection(), other_projection())]
    logs = [log_softmax((images @ weight.T).numpy(), axis=1) for weight in weights]
    return logsumexp(logs, axis=0) - np.log(2)


def test_an_ensemble_stores_the_logarithm_of_the_mean_of_the_probabilities(workspace):
    built = build(workspace, (PROJECTION, OTHER), views=1)
    assert Path(built["path"]).name == "projection+other_projection.zarr"
    store = LogitStore.open(built["path"])
    for view in (0, 1):
        found = store.logits(store.sample_ids, view)
        # Members' sums of 3072 products in float32, logits of up to 60.
        np.testing.assert_allclose(found, independent_mean(workspace, view), atol=5e-4)
    about = store.manifest
    assert (about.teachers, about.ensemble) == ([PROJECTION, OTHER], "probabilities")
    assert len(about.mean) == 2
    assert build(workspace, (PROJECTION, OTHER), views=1)["teacher_forwards"] == 0

    both = {"store": built["path"], "teacher": (PROJECTION, OTHER), "rows": 8}
    assert check(workspace, **both)["rows_compared"] == 16
    with pytest.raises(TeacherError, match="gives other logits"):
        check(workspace, **(both | {"teacher": (PROJECTION, PROJECTION)}))
    with pytest.raises(TeacherError, match=r"mean is .* as the store was built: .*projection \+ "):
        check(workspace, **(both | {"teacher": PROJECTION}))
    before = snapshot(Path(built["path"]))
    flip(Path(built["path"], "views/1/rows/c/0/0"))
    assert check(workspace, store=built["path"], repair=True)["repaired"]  # with both, unnamed
    assert snapshot(Path(built["path"])) == before


@pytest.mark.parametrize(
    "options",
    [{"teacher": (OTHER, PROJECTION)}, {"ensemble": "logits"}],
    ids=["another order", "another mean"],
)
def test_another_ensemble_is_another_store(workspace, options):
    store = str(workspace / "stores/mine.zarr")
    build(workspace, (PROJECTION, OTHER), views=0, store=store)
    given = {"teacher": (PROJECTION, OTHER), "store": store, "views": 0} | options
    with pytest.raises(CacheMismatchError, match="teacher_digest is "):
        build(workspace, **given)


# Stores side by side


@pytest.mark.parametrize("name", ["timm:resnet18", "resnet50.IMAGENET1K_V1", "a+timm:b"])
def test_train_finds_the_store_of_a_teacher_by_the_teachers_name(store_path, workspace, name):
    stores = store_path.parent
    named = stores / f"{teacher_name(name)}.zarr"
    assert named.parent == stores  # a legal file name
    shutil.copytree(store_path, named)
    shutil.copytree(store_path, stores / "resnet18.zarr")
    result = train(
        TrainOptions(
            workspace=workspace,
            teacher=name,
            subset="full",
            model="resnet8",
            epochs=1,
            batch_size=36,
            device="cpu",
            num_workers=1,
        )
    ).to_json()
    assert result["teacher_forwards"] == 0
    assert Workspace(workspace).require_store(name) == named
