from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import ImageFolder

from kdcache.data.digits import digits
from kdcache.data.sources import open_source
from kdcache.errors import ConfigError, DatasetError
from tests.conftest import real_data, write_images
from tests.data.source_files import contents, png, value_of, write_parquet, write_pngs

# --- digits ---


def test_digits_are_scikit_learns_with_their_labels():
    source = digits()
    bunch = load_digits()
    train = source.splits["train"]
    assert list(source.splits) == ["train"]
    assert source.class_names == [str(number) for number in range(10)]
    assert np.array_equal(train.labels, bunch.target)
    assert len(train.labels) == 1797
    for position in (0, 1, 1796):
        image = Image.open(io.BytesIO(train.read(position)))
        expected = bunch.images[position] * 255 / 16
        assert image.mode == "L"
        assert abs(np.asarray(image) - expected).max() <= 0.5


def test_digits_need_no_more_to_be_said():
    source = open_source("digits")
    assert source.default_val_fraction == 0.2
    assert source.default_policy == "pad-crop(1, flip=False)"
    assert source.identity["kind"] == "digits"
    assert source.splits["train"].name(17) == "digits[17]"


# --- folders ---


def test_a_folder_of_class_folders_is_one_split(tmp_path):
    write_pngs(tmp_path / "cat", 3, 1)
    write_pngs(tmp_path / "ant", 2)
    source = open_source(str(tmp_path))
    assert source.class_names == ["ant", "cat"]
    assert list(source.splits) == ["train"]
    assert contents(source.splits["train"]) == [(2, 0), (1, 1), (3, 1)]
    assert source.splits["train"].name(1) == str(tmp_path / "cat" / "001.png")
    assert source.default_val_fraction is None


@pytest.mark.parametrize("name", ["val", "valid", "validation", "dev", "eval", "test"])
def test_a_folder_with_split_folders_has_two_splits(tmp_path, name):
    write_pngs(tmp_path / "train" / "ant", 1)
    write_pngs(tmp_path / "train" / "cat", 2, 3)
    write_pngs(tmp_path / name / "cat", 4)
    source = open_source(str(tmp_path))
    assert source.class_names == ["ant", "cat"]
    assert contents(source.splits["train"]) == [(1, 0), (2, 1), (3, 1)]
    assert contents(source.splits["val"]) == [(4, 1)]


@pytest.mark.parametrize(
    ("names", "winner"),
    [
        (["val", "test"], "val"),
        (["validation", "test"], "validation"),
        (["test", "validation", "val"], "val"),
        (["test", "eval", "dev", "validation", "valid"], "valid"),
        (["test", "eval", "dev"], "dev"),
        (["test", "eval"], "eval"),
    ],
)
def test_validation_wins_over_test(tmp_path, names, winner):
    write_pngs(tmp_path / "train" / "ant", 1)
    for value, name in enumerate(names, start=2):
        write_pngs(tmp_path / name / "ant", value)
    source = open_source(str(tmp_path))
    assert contents(source.splits["val"]) == [(2 + names.index(winner), 0)]
    ignored = {Path(name).parents[1].name for one in source.left_out for name in one.names}
    assert ignored == set(names) - {winner}


def test_an_image_folder_is_read_as_torchvision_reads_it(tmp_path):
    write_images(tmp_path, count=30, classes=3, sides=(8, 8))
    write_pngs(tmp_path / "class_1" / "deeper", 7)
    expected = ImageFolder(tmp_path)
    source = open_source(str(tmp_path))
    split = source.splits["train"]
    assert source.class_names == expected.classes
    found = [(split.name(i), int(label)) for i, label in enumerate(split.labels)]
    assert sorted(found) == sorted(expected.samples)


def test_other_files_are_left_out_and_told(tmp_path):
    write_pngs(tmp_path / "ant", 1)
    (tmp_path / "ant" / "README.txt").write_text("ants")
    (tmp_path / "ant" / "UPPER.PNG").write_bytes(png(2))
    (tmp_path / "list.txt").write_text("ant/001.png")
    source = open_source(str(tmp_path))
    assert contents(source.splits["train"]) == [(1, 0), (2, 0)]
    (left_out,) = source.left_out
    assert left_out.why == "not images"
    assert set(left_out.names) == {str(tmp_path / "list.txt"), str(tmp_path / "ant/README.txt")}


def test_a_folder_may_be_called_what_looks_like_a_pattern(tmp_path):
    write_pngs(tmp_path / "photos[1]" / "ant", 1)
    source = open_source(str(tmp_path / "photos[1]"))
    assert contents(source.splits["train"]) == [(1, 0)]


def test_a_class_of_the_other_split_alone_is_refused(tmp_path):
    write_pngs(tmp_path / "train" / "ant", 1)
    write_pngs(tmp_path / "val" / "zebra", 2)
    with pytest.raises(DatasetError, match=r"val has the class folder zebra"):
        open_source(str(tmp_path))


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=f"{tmp_path} holds no class folders"):
        open_source(str(tmp_path))


def test_a_class_folder_without_images_is_refused(tmp_path):
    write_pngs(tmp_path / "ant", 1)
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    with pytest.raises(DatasetError, match=f"{tmp_path / 'cat'} holds no images"):
        open_source(str(tmp_path))


def test_an_evaluation_split_need_not_have_every_class(tmp_path):
    write_pngs(tmp_path / "train" / "ant", 1)
    write_pngs(tmp_path / "train" / "cat", 2)
    write_pngs(tmp_path / "val" / "cat", 3)
    (tmp_path / "val" / "ant").mkdir()
    assert contents(open_source(str(tmp_path)).splits["val"]) == [(3, 1)]


def test_hidden_folders_are_no_classes(tmp_path):
    write_pngs(tmp_path / "ant", 1)
    write_pngs(tmp_path / ".ipynb_checkpoints", 2)
    source = open_source(str(tmp_path))
    assert source.class_names == ["ant"]
    assert contents(source.splits["train"]) == [(1, 0)]


def test_evaluation_folders_without_a_training_one_are_refused(tmp_path):
    write_pngs(tmp_path / "val" / "ant", 1)
    write_pngs(tmp_path / "test" / "ant", 1)
    with pytest.raises(DatasetError, match=f"{tmp_path} holds test, val and no train"):
        open_source(str(tmp_path))


def test_beside_other_classes_the_name_of_a_split_is_a_class(tmp_path):
    for value, name in enumerate(("ant", "test", "val")):
        write_pngs(tmp_path / name, value)
    source = open_source(str(tmp_path))
    assert source.class_names == ["ant", "test", "val"]
    assert contents(source.splits["train"]) == [(0, 0), (1, 1), (2, 2)]
    assert source.left_out == []


def test_a_flat_evaluation_folder_is_told_from_an_empty_one(tmp_path):
    # As ILSVRC2012_img_val.tar unpacks.
    write_pngs(tmp_path / "train" / "n01440764", 1)
    write_pngs(tmp_path / "val", 2)
    with pytest.raises(DatasetError, match=f"{tmp_path / 'val'} holds images but no class folders"):
        open_source(str(tmp_path))


def test_archives_beside_class_folders_change_nothing(tmp_path):
    write_pngs(tmp_path / "train" / "n01440764", 1)
    write_pngs(tmp_path / "val" / "n01440764", 2)
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(b"")
    source = open_source(str(tmp_path))
    assert contents(source.splits["train"]) == [(1, 0)]


def test_the_shape_of_imagenet_is_read_as_torchvision_reads_it(tmp_path):
    """1,000 folders named by WordNet ids; photos in a fifth of them, one image in each other."""
    photos = pq.read_table(real_data("imagenet-photos") / "photos.parquet").to_pylist()
    ids = [f"n{1440764 + 1237 * label:08}" for label in range(1000)]
    for split in ("train", "val"):
        for label, name in enumerate(ids):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            content = photos[label // 5]["image"]["bytes"] if label % 5 == 0 else png(label % 256)
            (folder / f"{name}_{label}.JPEG").write_bytes(content)
    source = open_source(str(tmp_path))
    assert source.class_names == ids
    for split in ("train", "val"):
        expected = ImageFolder(tmp_path / split)
        found = source.splits[split]
        assert [(found.name(i), i) for i in range(1000)] == expected.samples
        assert found.labels.tolist() == expected.targets
    assert source.splits["val"].read(995) == photos[199]["image"]["bytes"]


@pytest.mark.parametrize(
    "change", ["another file", "another size", "another time", "another class", "another split"]
)
def test_the_identity_of_a_folder_tells_of_changes(tmp_path, change):
    train, val = tmp_path / "train", tmp_path / "val"
    write_pngs(train / "ant", 1, 2)
    write_pngs(train / "cat", 3, 4)
    write_pngs(val / "cat", 5)
    before = open_source(str(tmp_path)).identity
    assert open_source(str(tmp_path)).identity == before
    file = train / "ant" / "001.png"
    time = file.stat().st_mtime_ns
    if change == "another file":
        write_pngs(train / "ant", 5)
    elif change == "another size":
        file.write_bytes(png(1) + b"more")
        os.utime(file, ns=(time, time))
    elif change == "another time":
        os.utime(file, ns=(time, time + 1))
    elif change == "another class":
        file.rename(train / "cat" / "001.png")
    else:  # all files are listed in the same order
        (train / "cat" / "004.png").rename(val / "cat" / "004.png")
    assert open_source(str(tmp_path)).identity != before


def test_no_such_source_is_asked_wrongly(tmp_path):
    with pytest.raises(ConfigError, match=r"SOURCE is .*nothing-here"):
        open_source(str(tmp_path / "nothing-here"))


# --- parquet ---


def test_a_parquet_file_is_one_split_with_the_names_it_states(tmp_path):
    rows = [(10, 0), (20, 2), (30, 1), (40, 0), (50, 2)]
    path = write_parquet(tmp_path / "test.parquet", rows, names=["ant", "bee", "cat"])
    source = open_source(str(path))
    assert source.class_names == ["ant", "bee", "cat"]
    assert list(source.splits) == ["train"]
    split = source.splits["train"]
    assert contents(split) == rows
    assert [value_of(split.read(i)) for i in (4, 0, 3)] == [50, 10, 40]
    assert split.name(4) == f"{path}, row 4"


def test_names_may_stand_in_a_key_of_their_own(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [(1, 1)], metadata={"class_names": "ant,bee"})
    assert open_source(str(path)).class_names == ["ant", "bee"]


def test_labels_without_names_are_named_by_their_number(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [(1, 0), (2, 1), (3, 2)])
    assert open_source(str(path)).class_names == ["0", "1", "2"]


def test_the_case_of_a_suffix_does_not_count(tmp_path):
    write_parquet(tmp_path / "train-0.parquet", [(1, 0)])
    write_parquet(tmp_path / "train-1.PARQUET", [(2, 1)])
    assert contents(open_source(str(tmp_path)).splits["train"]) == [(1, 0), (2, 1)]
    (tmp_path / "train-0.parquet").unlink()
    assert contents(open_source(str(tmp_path), classes=2).splits["train"]) == [(2, 1)]


def test_shards_of_a_split_are_read_in_the_order_of_their_names(tmp_path):
    names = ["ant", "bee"]
    write_parquet(tmp_path / "data" / "train-00001.parquet", [(3, 1), (4, 0), (5, 1)], names=names)
    write_parquet(tmp_path / "data" / "train-00000.parquet", [(1, 0), (2, 1)], names=names)
    write_parquet(tmp_path / "data" / "test-00000.parquet", [(9, 1)], names=names)
    (tmp_path / "README.md").write_text("as the hub has one")
    source = open_source(str(tmp_path))
    train = source.splits["train"]
    assert contents(train) == [(1, 0), (2, 1), (3, 1), (4, 0), (5, 1)]
    assert contents(source.splits["val"]) == [(9, 1)]
    assert train.name(4) == f"{tmp_path / 'data' / 'train-00001.parquet'}, row 2"
    assert source.class_names == names


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train.parquet", "val.parquet"),
        ("train-00000-of-00001-ab.parquet", "validation-00000-of-00001-cd.parquet"),
        ("train/0000.parquet", "test/0000.parquet"),
        ("deep/train/0000.parquet", "deep/validation/0000.parquet"),
        ("0000.parquet", "test.parquet"),
        ("cifar10-train.parquet", "cifar10-test.parquet"),
        ("photos_train_0.parquet", "photos_val_0.parquet"),
        ("trainset.parquet", "test0.parquet"),
        ("contest.parquet", "test.parquet"),
    ],
)
def test_a_shards_name_or_folder_tells_its_split(tmp_path, train, val):
    write_parquet(tmp_path / train, [(1, 0)])
    write_parquet(tmp_path / val, [(2, 0)])
    source = open_source(str(tmp_path))
    assert contents(source.splits["train"]) == [(1, 0)]
    assert contents(source.splits["val"]) == [(2, 0)]


@pytest.mark.parametrize(
    ("names", "winner"),
    [
        (["val", "test"], "val"),
        (["validation", "test"], "validation"),
        (["test", "validation", "val"], "val"),
    ],
)
def test_validation_shards_win_over_test_shards(tmp_path, names, winner):
    write_parquet(tmp_path / "train.parquet", [(1, 0)])
    for value, name in enumerate(names, start=2):
        write_parquet(tmp_path / f"{name}.parquet", [(value, 0)])
    source = open_source(str(tmp_path))
    assert contents(source.splits["val"]) == [(2 + names.index(winner), 0)]


def test_evaluation_shards_alone_are_refused(tmp_path):
    write_parquet(tmp_path / "test.parquet", [(1, 0)])
    with pytest.raises(DatasetError, match=f"{tmp_path} holds only an evaluation split"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("label", [2, 7])
def test_a_label_beyond_the_names_is_refused(tmp_path, label):
    path = write_parquet(tmp_path / "a.parquet", [(1, 0), (2, label)], names=["ant", "bee"])
    with pytest.raises(DatasetError, match=f"label {label}, expected labels below 2"):
        open_source(str(path))


def test_a_negative_label_is_refused(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [(1, 0), (2, -1)])
    with pytest.raises(DatasetError, match="label -1"):
        open_source(str(path))


def test_a_row_without_a_label_is_refused(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [(1, 0), (2, None)])
    with pytest.raises(DatasetError, match="1 rows without a label"):
        open_source(str(path))


@pytest.mark.parametrize(
    ("label", "label_type"), [("cat", pa.string()), (1.5, pa.float64())], ids=["text", "float"]
)
def test_labels_that_are_no_integers_are_refused(tmp_path, label, label_type):
    path = write_parquet(tmp_path / "a.parquet", [(1, label)], label_type=label_type)
    with pytest.raises(DatasetError, match=r"a\.parquet .*`label` \(integer\)"):
        open_source(str(path))


def test_the_column_of_labels_may_be_chosen_and_that_of_images_have_any_name(tmp_path):
    # As Hugging Face's cifar100.
    images = [{"bytes": png(value), "path": ""} for value in (1, 2)]
    names = {"coarse_label": ["fish", "tree"], "fine_label": ["ray", "shark", "oak"]}
    features = {name: {"names": of_label} for name, of_label in names.items()}
    table = pa.table({"img": images, "fine_label": [2, 0], "coarse_label": [1, 0]})
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    path = tmp_path / "a.parquet"
    pq.write_table(table.replace_schema_metadata(metadata), path)
    for key, labels in (("fine_label", [2, 0]), ("coarse_label", [1, 0])):
        source = open_source(str(path), label_key=key)
        expected = list(zip((1, 2), labels, strict=True))
        assert (source.class_names, contents(source.splits["train"])) == (names[key], expected)
    with pytest.raises(DatasetError, match=r"columns img \(struct\), .*: label_key fine_label"):
        open_source(str(path))
    with pytest.raises(ConfigError, match=r"label_key=img: .* fine_label, coarse_label"):
        open_source(str(path), label_key="img")


def test_a_key_where_there_is_nothing_to_choose_is_refused(tmp_path):
    write_pngs(tmp_path / "ant", 1)
    for source in ("digits", str(tmp_path)):
        with pytest.raises(ConfigError, match=f"label_key=fine: {source} has no columns"):
            open_source(source, label_key="fine")
