"""Hugging Face data sets, written by their own library and loaded from the disk."""

from __future__ import annotations

import io
import pickle
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from kdcache.data.beton import open_beton
from kdcache.data.pack import pack
from kdcache.data.sources import open_source
from kdcache.errors import ConfigError, DatasetError
from kdcache.options import PackOptions
from tests.data.packed_names import names_of

datasets = pytest.importorskip(
    "datasets", reason="needs Hugging Face's library: pip install 'kdcache[hf]'"
)


@pytest.fixture(autouse=True)
def _offline(tmp_path_factory, monkeypatch):
    """No network, and a cache that is not the user's."""
    cache = tmp_path_factory.mktemp("hf")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def images(count, first=0):
    return [Image.new("RGB", (6, 5), (value, 0, 0)) for value in range(first, first + count)]


def dataset(count, *, first=0, image="image", label="label", names=("ant", "bee", "cat"), **more):
    """Return a data set of the library with the columns of an image classification."""
    features = {image: datasets.Image(), label: datasets.ClassLabel(names=list(names))}
    content = {image: images(count, first), label: [n % len(names) for n in range(count)]}
    for column, values in more.items():
        features[column], content[column] = datasets.Value("int64"), values
    return datasets.Dataset.from_dict(content, features=datasets.Features(features))


def reds(split):
    return [
        Image.open(io.BytesIO(split.read(i))).getpixel((0, 0))[0] for i in range(len(split.labels))
    ]


def test_what_save_to_disk_wrote_is_read(tmp_path):
    both = {"train": dataset(7), "test": dataset(3, first=100)}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "saved")
    for source in (str(tmp_path / "saved"), f"hf:{tmp_path / 'saved'}"):
        opened = open_source(source)
        assert opened.class_names == ["ant", "bee", "cat"]
        assert opened.splits["train"].labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
        assert reds(opened.splits["train"]) == list(range(7))
        assert reds(opened.splits["val"]) == [100, 101, 102]


def test_evaluation_splits_beside_the_one_that_is_taken_are_told(tmp_path):
    names = ("train", "validation", "test")
    data = {name: dataset(2, first=10 * number) for number, name in enumerate(names)}
    datasets.DatasetDict(data).save_to_disk(tmp_path / "saved")
    source = open_source(str(tmp_path / "saved"))
    assert reds(source.splits["val"]) == [10, 11]
    (left_out,) = source.left_out
    assert left_out.names == ("test",)
    assert "2 images" in left_out.why


def test_a_data_set_of_one_row_is_read(tmp_path):
    dataset(1).save_to_disk(tmp_path / "one")
    assert reds(open_source(str(tmp_path / "one")).splits["train"]) == [0]


def test_a_row_without_an_image_is_refused_when_it_is_read(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    content = {"image": [*images(1), None], "label": [0, 0]}
    datasets.Dataset.from_dict(content, features=features).save_to_disk(tmp_path / "saved")
    split = open_source(str(tmp_path / "saved")).splits["train"]
    assert split.read(0)
    with pytest.raises(DatasetError, match="the row holds no image"):
        split.read(1)


def test_one_split_saved_alone_is_to_be_divided(tmp_path):
    dataset(12).save_to_disk(tmp_path / "saved")
    result = pack(
        PackOptions(
            str(tmp_path / "saved"),
            workspace=tmp_path / "w",
            val_fraction=0.25,
            num_workers=1,
        )
    ).to_json()
    assert (result["train"]["samples"], result["val"]["samples"]) == (9, 3)


def test_parquet_of_the_library_is_packed_alike_with_and_without_it(tmp_path):
    for name, data in {"train": dataset(8), "validation": dataset(4, first=50)}.items():
        (tmp_path / "data").mkdir(exist_ok=True)
        data.to_parquet(tmp_path / "data" / f"{name}-00000-of-00001.parquet")
    found = {}
    for source in (f"hf:{tmp_path / 'data'}", str(tmp_path / "data")):
        workspace = tmp_path / f"w{len(found)}"
        options = PackOptions(source, workspace=workspace, num_workers=1)
        found[source] = pack(options).to_json()["fingerprint"]
        beton = open_beton(workspace / "train.beton")
        assert beton.labels.tolist() == [n % 3 for n in range(8)]
    assert len(set(found.values())) == 1


def test_a_folder_of_images_is_what_the_library_makes_of_it(tmp_path):
    # Its table then holds paths, and no bytes.
    for split, first in (("train", 0), ("validation", 10)):
        for number, image in enumerate(images(4, first)):
            folder = tmp_path / "photos" / split / f"class_{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{number}.png")
    source = open_source(f"hf:{tmp_path / 'photos'}")
    assert source.class_names == ["class_0", "class_1"]
    assert sorted(reds(source.splits["val"])) == [10, 11, 12, 13]


def test_the_column_of_labels_may_be_chosen(tmp_path):
    data = dataset(6, image="img", label="fine_label", coarse_label=[1, 0, 1, 0, 1, 0])
    data.save_to_disk(tmp_path / "saved")
    source = str(tmp_path / "saved")
    fine = open_source(source, label_key="fine_label")
    assert (fine.class_names, fine.splits["train"].labels.tolist()) == (
        ["ant", "bee", "cat"],
        [0, 1, 2, 0, 1, 2],
    )
    coarse = open_source(source, label_key="coarse_label")
    assert (coarse.class_names, coarse.splits["train"].labels.tolist()) == (
        ["0", "1"],
        [1, 0, 1, 0, 1, 0],
    )
    with pytest.raises(DatasetError, match=r"columns img \(struct\), .*label_key"):
        open_source(source)


def test_hidden_labels_are_refused(tmp_path):
    data = dataset(3).map(lambda _: {"label": -1})
    data.save_to_disk(tmp_path / "saved")
    with pytest.raises(DatasetError, match="train has the label -1, expected labels from 0"):
        open_source(str(tmp_path / "saved"))


def test_splits_of_other_names_are_refused_and_named(tmp_path):
    datasets.DatasetDict({"unsupervised": dataset(3)}).save_to_disk(tmp_path / "saved")
    with pytest.raises(DatasetError, match="has the splits unsupervised, expected train or"):
        open_source(str(tmp_path / "saved"))


def test_a_split_pickles_as_the_paths_of_its_files(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), dtype=np.uint8)
    content = {"image": [Image.fromarray(pixels) for pixels in noise], "label": [0] * 20}
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a"])}
    )
    datasets.Dataset.from_dict(content, features=features).save_to_disk(tmp_path / "saved")
    split = open_source(str(tmp_path / "saved")).splits["train"]
    pickled = pickle.dumps(split)
    assert len(pickled) < 20_000 < 20 * len(split.read(0))
    copy = pickle.loads(pickled)  # noqa: S301  (our own)
    assert copy.read(17) == split.read(17)
    assert copy.name(17) == f"{tmp_path / 'saved'}, train, row 17"


def test_the_names_of_samples_are_kept(tmp_path):
    source = str(tmp_path / "saved")
    dataset(5).save_to_disk(source)
    pack(PackOptions(source, workspace=tmp_path / "w", val_fraction=0, num_workers=1))
    names = [f"{source}, train, row {number}" for number in range(5)]
    assert names_of(tmp_path / "w" / "train.beton") == names
    shutil.rmtree(source)  # they do not need the source
    assert names_of(tmp_path / "w" / "train.beton") == names


def test_a_name_without_a_network_tells_the_remedy():
    with pytest.raises(DatasetError, match=r"hf:nobody/nothing/here cannot be loaded: .*parquet"):
        open_source("hf:nobody/nothing/here")


def test_without_the_library_the_remedy_is_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"hf:nobody/nothing, .*pip install 'kdcache\[hf\]'"):
        open_source("hf:nobody/nothing")
