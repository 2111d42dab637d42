from __future__ import annotations

import hashlib
import io
import json
import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import ImageFolder

from kdcache.cli import main
from kdcache.data.beton import open_beton
from kdcache.data.digits import digits
from kdcache.data.names import training_names
from kdcache.data.source import Source, split_off_validation
from kdcache.data.sources import open_source
from kdcache.errors import ConfigError, DatasetError
from tests.conftest import real_data, write_images


def png(value):
    """Return a PNG of one grey."""
    file = io.BytesIO()
    Image.new("L", (4, 3), value).save(file, "PNG")
    return file.getvalue()


def value_of(content):
    """Return the grey of a PNG of one grey."""
    return Image.open(io.BytesIO(content)).getpixel((0, 0))


def write_pngs(folder, *values):
    """Write one PNG per grey value."""
    folder.mkdir(parents=True, exist_ok=True)
    for value in values:
        (folder / f"{value:03}.png").write_bytes(png(value))


def contents(split):
    """Return grey value and label of each image of a split, in its order."""
    return [(value_of(split.read(i)), int(label)) for i, label in enumerate(split.labels)]


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
    assert sorted(source.ignored_splits) == sorted(set(names) - {winner})


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
    assert source.ignored_files == [str(tmp_path / "ant" / "README.txt")]


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
    with pytest.raises(DatasetError, match=f"{tmp_path} holds val, test and no train"):
        open_source(str(tmp_path))


def test_beside_other_classes_the_name_of_a_split_is_a_class(tmp_path):
    for value, name in enumerate(("ant", "test", "val")):
        write_pngs(tmp_path / name, value)
    source = open_source(str(tmp_path))
    assert source.class_names == ["ant", "test", "val"]
    assert contents(source.splits["train"]) == [(0, 0), (1, 1), (2, 2)]
    assert source.ignored_splits == []


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


def write_parquet(path, rows, *, names=None, row_group_size=2, label_type=None, metadata=None):
    """Write (grey, label) rows as Hugging Face's datasets library does."""
    images = [{"bytes": png(value), "path": f"{value}.png"} for value, _ in rows]
    image = pa.array(images, type=pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    label = pa.array([label for _, label in rows], type=label_type or pa.int64())
    table = pa.table({"image": image, "label": label})
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=row_group_size)
    return path


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
    path = write_parquet(tmp_path / "a.parquet", [(1, 0), (2, 3)])
    assert open_source(str(path)).class_names == ["0", "1", "2", "3"]


def test_the_case_of_a_suffix_does_not_count(tmp_path):
    write_parquet(tmp_path / "train-0.parquet", [(1, 0)])
    write_parquet(tmp_path / "train-1.PARQUET", [(2, 1)])
    assert contents(open_source(str(tmp_path)).splits["train"]) == [(1, 0), (2, 1)]
    (tmp_path / "train-0.parquet").unlink()
    assert contents(open_source(str(tmp_path)).splits["train"]) == [(2, 1)]


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
    with pytest.raises(DatasetError, match=r"columns img, .*Choose one: label_key fine_label"):
        open_source(str(path))
    with pytest.raises(ConfigError, match=r"label_key=img: .* fine_label, coarse_label"):
        open_source(str(path), label_key="img")


def test_a_key_where_there_is_nothing_to_choose_is_refused(tmp_path):
    write_pngs(tmp_path / "ant", 1)
    for source in ("digits", str(tmp_path)):
        with pytest.raises(ConfigError, match=f"label_key=fine: {source} has no columns"):
            open_source(source, label_key="fine")


# --- the evaluation split from elsewhere ---


def test_another_source_may_be_the_evaluation_split(tmp_path):
    for value, name in enumerate(("ant", "bee", "cat")):
        write_pngs(tmp_path / "a" / name, value)
    write_pngs(tmp_path / "b" / "cat", 7)
    write_pngs(tmp_path / "b" / "bee", 8)
    source = open_source(str(tmp_path / "a"), val_source=str(tmp_path / "b"))
    # bee and cat are 0 and 1 there, 1 and 2 here.
    assert contents(source.splits["val"]) == [(8, 1), (7, 2)]
    assert source.splits["val"].name(0) == str(tmp_path / "b" / "bee" / "008.png")
    before = source.identity
    assert before["val_source"] == str(tmp_path / "b")
    write_pngs(tmp_path / "b" / "cat", 9)
    assert open_source(str(tmp_path / "a"), val_source=str(tmp_path / "b")).identity != before


def test_the_column_of_labels_is_that_of_both_sources(tmp_path):
    for name, labels in (("a", [0, 1]), ("b", [1, 0])):
        images = [{"bytes": png(value), "path": ""} for value in (1, 2)]
        other = [1 - label for label in labels]
        pq.write_table(
            pa.table({"image": images, "label": other, "fine": labels}),
            tmp_path / f"{name}.parquet",
        )
    train, val = (str(tmp_path / f"{name}.parquet") for name in ("a", "b"))
    source = open_source(train, val_source=val, label_key="fine")
    assert contents(source.splits["train"]) == [(1, 0), (2, 1)]
    assert contents(source.splits["val"]) == [(1, 1), (2, 0)]


def test_sources_of_two_kinds_go_together_by_the_names_of_their_classes(tmp_path):
    write_pngs(tmp_path / "a" / "ant", 1)
    write_pngs(tmp_path / "a" / "bee", 2)
    stated = write_parquet(tmp_path / "test.parquet", [(3, 0), (4, 1)], names=["bee", "ant"])
    numbered = write_parquet(tmp_path / "other.parquet", [(3, 0), (4, 1)])
    for path, labels in ((stated, [1, 0]), (numbered, [0, 1])):
        source = open_source(str(tmp_path / "a"), val_source=str(path))
        assert source.splits["val"].labels.tolist() == labels


def test_an_evaluation_source_that_does_not_fit_is_refused(tmp_path):
    write_pngs(tmp_path / "a" / "ant", 1)
    write_pngs(tmp_path / "b" / "zebra", 1)
    for name in ("train", "val"):
        write_pngs(tmp_path / "both" / name / "ant", 1)
    a, b, both = (str(tmp_path / name) for name in ("a", "b", "both"))
    with pytest.raises(DatasetError, match=f"{b} has the class zebra, expected one of the 1 "):
        open_source(a, val_source=b)
    numbered = write_parquet(tmp_path / "numbered.parquet", [(1, 0), (2, 1)])
    with pytest.raises(DatasetError, match=f"{numbered} has the class 0, expected one of the 1 "):
        open_source(a, val_source=str(numbered))
    with pytest.raises(ConfigError, match=f"val_source={both}: it has a training split"):
        open_source(a, val_source=both)
    with pytest.raises(ConfigError, match=f"val_source={a}: {both} has an evaluation"):
        open_source(both, val_source=a)


@pytest.mark.parametrize("label_type", [pa.int8(), pa.uint16(), pa.int32()], ids=str)
def test_labels_of_any_integer_type_will_do(tmp_path, label_type):
    path = write_parquet(tmp_path / "a.parquet", [(1, 0), (2, 5)], label_type=label_type)
    split = open_source(str(path)).splits["train"]
    assert (split.labels.dtype, split.labels.tolist()) == (np.int64, [0, 5])


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"a": [{"bytes": b""}], "b": [{"bytes": b""}], "label": [0]}),
        pa.table({"image": [b""], "label": [0]}),
        pa.table({"image": [{"path": "a.png"}], "label": [0]}),
        pa.table({"image": [{"bytes": b"", "path": ""}], "fine_label": [0]}),
    ],
    ids=["which image", "bare bytes", "paths only", "no label"],
)
def test_other_columns_are_refused_and_named(tmp_path, table):
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DatasetError, match=f"has the columns {', '.join(table.column_names)}"):
        open_source(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize("content", [pa.binary(), pa.large_binary()], ids=str)
def test_of_several_images_the_one_of_that_name_is_taken(tmp_path, content):
    kind = pa.struct({"path": pa.string(), "bytes": content})
    columns = {
        name: pa.array([{"path": "", "bytes": png(value)}], type=kind)
        for name, value in (("thumbnail", 1), ("image", 2))
    }
    pq.write_table(pa.table(columns | {"label": [0]}), tmp_path / "a.parquet")
    assert contents(open_source(str(tmp_path / "a.parquet")).splits["train"]) == [(2, 0)]


def test_shards_with_their_images_in_other_columns_are_refused(tmp_path):
    for name, column in (("0.parquet", "image"), ("1.parquet", "photo")):
        pq.write_table(
            pa.table({column: [{"bytes": png(1), "path": ""}], "label": [0]}), tmp_path / name
        )
    with pytest.raises(DatasetError, match=r"1\.parquet has its images in photo, expected image"):
        open_source(str(tmp_path))


def test_a_file_without_rows_is_refused(tmp_path):
    write_parquet(tmp_path / "a.parquet", [(1, 0)])
    table = pq.read_table(tmp_path / "a.parquet").slice(0, 0)
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DatasetError, match=r"a\.parquet holds no rows"):
        open_source(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all"])
def test_a_file_that_is_not_parquet_is_refused(tmp_path, content):
    path = tmp_path / "images.zip"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"images\.zip is not readable as parquet"):
        open_source(str(path))


def test_a_truncated_parquet_file_is_refused(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [(1, 0), (2, 1)])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DatasetError, match=r"a\.parquet is not readable as parquet"):
        open_source(str(path))


def test_a_row_without_image_bytes_is_refused_when_it_is_read(tmp_path):
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema({"image": image, "label": pa.int64()})
    rows = [{"image": {"bytes": None, "path": "a.png"}, "label": 0}]
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "a.parquet")
    split = open_source(str(tmp_path / "a.parquet")).splits["train"]
    with pytest.raises(DatasetError, match="no image bytes"):
        split.read(0)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.integers(1, 4))
@settings(deadline=None, max_examples=20)
def test_every_position_has_its_row_whatever_the_row_groups(tmp_path_factory, counts, group):
    folder = tmp_path_factory.mktemp("shards")
    rows = [(value, value % 3) for value in range(sum(counts) + 1)]
    ends = np.cumsum([1, *counts])
    for number, end in enumerate(ends):
        start = ends[number - 1] if number else 0
        write_parquet(folder / f"{number}.parquet", rows[start:end], row_group_size=group)
    split = open_source(str(folder)).splits["train"]
    assert contents(split) == rows
    names = [split.name(position) for position in range(len(rows))]
    assert names == [
        f"{folder / str(number)}.parquet, row {row}"
        for number, count in enumerate([1, *counts])
        for row in range(count)
    ]


# --- a source and its division ---


@pytest.mark.parametrize("kind", ["digits", "folder", "parquet"])
def test_the_splits_of_a_source_pickle(tmp_path, kind):
    if kind == "folder":
        write_pngs(tmp_path / "ant", 1, 2)
    elif kind == "parquet":
        write_parquet(tmp_path / "a.parquet", [(1, 0), (2, 0)])
    source = open_source("digits" if kind == "digits" else str(tmp_path))
    split = source.splits["train"]
    copy = pickle.loads(pickle.dumps(split))  # noqa: S301  (our own)
    assert (copy.read(1), copy.name(1)) == (split.read(1), split.name(1))
    json.dumps(source.identity)


class Numbered:
    """A split whose images are their numbers."""

    def __init__(self, labels):
        self.labels = np.array(labels)

    def read(self, position):
        return b"%d" % position

    def name(self, position):
        return f"number {position}"


def divide(labels, fraction, seed=0, classes=None):
    labels = np.asarray(labels)
    names = [str(label) for label in range(classes or labels.max() + 1)]
    splits = split_off_validation(Source({"train": Numbered(labels)}, names, {}), fraction, seed)
    return {
        name: [int(split.read(position)) for position in range(len(split.labels))]
        for name, split in splits.items()
    }


@given(
    st.lists(st.integers(0, 4), min_size=20, max_size=80),
    st.floats(0.1, 0.99),
    st.integers(0, 2**63),
)
@example([0, 1, 1, 2, 2, 2, 2, 2, 2], 0.99, 0)
@example([0, 0, 1, 1, 1, 1, 1, 1, 1, 1], 0.25, 0)
@settings(deadline=None, max_examples=50)
def test_each_class_gives_its_share_and_keeps_an_image(labels, fraction, seed):
    labels = np.array(labels)
    if all(int(fraction * size + 0.5) == 0 for size in np.bincount(labels)):
        with pytest.raises(ConfigError, match="at least one image"):
            divide(labels, fraction, seed, classes=6)
        return
    divided = divide(labels, fraction, seed, classes=6)
    assert sorted(divided["train"] + divided["val"]) == list(range(len(labels)))
    assert divided["train"] == sorted(divided["train"])
    assert divided["val"] == sorted(divided["val"])
    for label in range(6):
        members = int((labels == label).sum())
        wanted = int(fraction * members + 0.5)
        expected = min(wanted, members - 1) if members else 0
        assert (labels[divided["val"]] == label).sum() == expected


def test_a_division_is_drawn_again_from_the_same_seed_alone():
    labels = np.arange(200) % 4
    assert divide(labels, 0.3) == divide(labels, 0.3)
    assert divide(labels, 0.3) != divide(labels, 0.3, seed=1)


def test_a_division_is_drawn_for_each_class_by_itself():
    # Two classes of equal sizes must not lose the images of equal places.
    val = np.array(divide(np.arange(200) % 2, 0.5)["val"])
    assert sorted(val[val % 2 == 0] // 2) != sorted(val[val % 2 == 1] // 2)


def test_images_of_a_division_keep_label_and_name():
    labels = [0, 1, 0, 1, 0, 1]
    source = Source({"train": Numbered(labels)}, ["0", "1"], {})
    for split in split_off_validation(source, 0.34, 0).values():
        for position, label in enumerate(split.labels):
            number = int(split.read(position))
            assert split.name(position) == f"number {number}"
            assert label == labels[number]


def test_a_share_of_zero_leaves_one_split():
    assert divide([0, 1, 0], 0) == {"train": [0, 1, 2]}


def test_a_share_too_small_for_one_image_is_refused():
    with pytest.raises(ConfigError, match=r"val_fraction=0\.01: .* of 12"):
        divide(np.arange(12) % 3, 0.01)


def test_a_link_to_a_file_that_is_not_there_is_named(tmp_path):
    write_pngs(tmp_path / "ant", 1)
    (tmp_path / "ant" / "gone.png").symlink_to(tmp_path / "nothing.png")
    with pytest.raises(DatasetError, match=r"gone\.png is a broken link"):
        open_source(str(tmp_path))


def test_a_link_to_a_folder_below_a_class_is_told_and_not_followed(tmp_path):
    write_pngs(tmp_path / "ant", 1)
    (tmp_path / "ant" / "circle").symlink_to(tmp_path)
    source = open_source(str(tmp_path))
    assert contents(source.splits["train"]) == [(1, 0)]
    assert source.ignored_files == [str(tmp_path / "ant" / "circle")]


# --- sources of the user's own ---


OWN_SOURCE = """
import io
from dataclasses import dataclass
import numpy as np
from PIL import Image
from kdcache.data.source import Source

@dataclass(frozen=True)
class Greys:
    labels: np.ndarray
    def read(self, position):
        file = io.BytesIO()
        Image.new("L", (8, 8), 40 * int(self.labels[position])).save(file, "PNG")
        return file.getvalue()
    def name(self, position):
        return f"grey {position}"

def greys():
    return Source({"train": Greys(np.array([0, 1, 2, 0, 1, 2]))}, ["a", "b", "c"], {"kind": "x"})

def nothing():
    return None
"""


def test_a_source_of_the_users_own_is_packed_by_its_place(tmp_path, monkeypatch):
    (tmp_path / "own_source.py").write_text(OWN_SOURCE)
    monkeypatch.chdir(tmp_path)
    words = ["pack", "own_source:greys", "--val-fraction", "0", "--workspace", "w", "--quiet"]
    assert main(words) == 0
    beton = open_beton(tmp_path / "w" / "train.beton")
    assert beton.labels.tolist() == [0, 1, 2, 0, 1, 2]
    made_from = beton.manifest.made_from
    assert made_from["kind"] == "own_source:greys"
    assert made_from["code_digest"] == hashlib.sha256(OWN_SOURCE.encode()).hexdigest()
    assert training_names(beton.manifest)[4] == "grey 4"


def test_what_is_not_a_source_is_refused(tmp_path, monkeypatch):
    (tmp_path / "own_source.py").write_text(OWN_SOURCE)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"own_source:nothing: expected .* returned NoneType"):
        open_source("own_source:nothing")
    with pytest.raises(ConfigError, match="label_key=x: own_source:greys has no columns"):
        open_source("own_source:greys", label_key="x")
    with pytest.raises(ConfigError, match=r"digits, .* or module:name.* does not exist"):
        open_source("digitz")
