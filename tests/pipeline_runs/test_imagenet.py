"""Our pipelines for ImageNet, on real photos in a tree of ImageNet's shape.

Small models stand in for the large ones, so that it takes seconds; all else is as we ship it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from torchvision.models import ResNet50_Weights

from kdcache.data.beton import open_beton
from kdcache.files import read_json
from kdcache.options import RunOptions
from kdcache.pipeline_runs.pipeline import find_pipeline
from kdcache.pipeline_runs.runner import run
from kdcache.selection.subset import Subset
from kdcache.store.logit_store import LogitStore
from tests.conftest import real_data
from tests.teacher.published_models import TinyNet, TinyNet_Weights, publish
from tests.teacher.server import serving

pytestmark = pytest.mark.long

SMALLER = {
    'teacher = "resnet50.IMAGENET1K_V1"': 'teacher = "kdcache_tiny.IMAGENET"',
    'teacher = "resnet34.IMAGENET1K_V1"': 'teacher = "kdcache_tiny.IMAGENET"',
    'model = "resnet18"': 'model = "shufflenet_v2_x0_5"',
    'model = "timm:mobilenetv1_100"': 'model = "shufflenet_v2_x0_5"',
    "views = 8": "views = 2",
    "epochs = 90": "epochs = 1",
    "epochs = 100": "epochs = 1",
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """train/ with 1,000 WordNet folders of a photo each, val/ with the 200 whose photo is right."""
    timm_data = pytest.importorskip("timm.data", reason="needs timm: pip install 'kdcache[timm]'")
    names = timm_data.ImageNetInfo().label_names()
    photos = pyarrow.parquet.read_table(real_data("imagenet-photos") / "photos.parquet")
    folder = tmp_path_factory.mktemp("imagenet")
    for photo in photos.to_pylist():
        content = photo["image"]["bytes"]
        for number in range(photo["label"], photo["label"] + 5):  # every fifth class has a photo
            image = folder / "train" / names[number] / f"{names[number]}_1.JPEG"
            image.parent.mkdir(parents=True)
            image.write_bytes(content)
        image = folder / "val" / names[photo["label"]] / f"ILSVRC2012_val_{photo['label']:08}.JPEG"
        image.parent.mkdir(parents=True)
        image.write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def ran(tree, tmp_path_factory) -> Iterator[Path]:
    """The workspace of both pipelines, the one after the other."""
    root = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch, serving(root) as server:
        patch.setenv("TORCH_HOME", str(root / "torch"))
        publish(TinyNet_Weights.IMAGENET, TinyNet(1000).state_dict(), root, server.address)
        for name in ("imagenet", "imagenet-mdslr"):
            run(RunOptions(str(smaller(name, root)), workspace=root / "w", source=str(tree)))
        yield root / "w"


def smaller(name: str, folder: Path) -> Path:
    """Write a pipeline of ours with small models and few epochs; return its path."""
    text = find_pipeline(name).read_text()
    for large, small in SMALLER.items():
        text = text.replace(large, small)
    assert "resnet" not in text.partition("[[step]]")[2]
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


def steps(workspace: Path, name: str) -> dict:
    return read_json(workspace / "recipes" / f"{name}.json")


def test_the_tree_is_packed_in_the_order_of_wordnet(ran, tree):
    about = open_beton(ran / "train.beton").manifest
    assert about.class_names == sorted(folder.name for folder in (tree / "train").iterdir())
    assert (about.classes, about.samples) == (1000, 1000)
    assert open_beton(ran / "val.beton").manifest.samples == 200


def test_classes_are_known_to_be_those_of_the_published_weights(ran):
    # Their names are words, the folders' are WordNet ids; both are in the order of ImageNet.
    assert ResNet50_Weights.IMAGENET1K_V1.meta["categories"][0] == "tench"
    assert open_beton(ran / "train.beton").manifest.class_names[0] == "n01440764"
    store = LogitStore.open(ran / "stores/kdcache_tiny.IMAGENET.zarr")
    assert store.manifest.teachers == ["kdcache_tiny.IMAGENET"]
    assert (store.num_views, store.manifest.rows) == (0, 1000)


@pytest.mark.parametrize("name", ["random-0.7", "medium-0.7"])
def test_views_are_of_the_kept_alone(ran, name):
    subset = Subset.load(ran / "subsets" / f"{name}.npz")
    store = LogitStore.open(ran / f"stores/kdcache_tiny.IMAGENET-{name}.zarr")
    assert len(subset.sample_ids) == 700
    np.testing.assert_array_equal(store.sample_ids, subset.sample_ids)
    assert store.num_views == 2


@pytest.mark.parametrize(("pipeline", "step"), [("imagenet", "KD"), ("imagenet-mdslr", "MDSLR")])
def test_the_student_is_trained_as_the_pipeline_says(ran, pipeline, step):
    student = steps(ran, pipeline)[step]["result"]
    assert student["samples"] == 700
    assert student["teacher_forwards"] == 0
    config = read_json(Path(student["path"]) / "config.json")["config"]
    assert (config["lr"], config["weight_decay"], config["batch_size"]) == (0.1, 1e-4, 256)
    assert config["reshape"] is (step == "MDSLR")
    assert config["schedule"] == ("step" if step == "MDSLR" else "one-cycle")
