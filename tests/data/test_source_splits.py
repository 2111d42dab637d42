from __future__ import annotations

import hashlib
import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kdcache.cli import main
from kdcache.data.beton import open_beton
from kdcache.data.source import Source, split_off_validation
from kdcache.data.sources import open_source
from kdcache.errors import ConfigError, DatasetError
from tests.data.packed_names import names_of
from tests.data.source_files import contents, png, write_parquet, write_pngs

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
    source = open_source(str(tmp_path / "a"), val_source=str(stated))
    assert source.splits["val"].labels.tolist() == [1, 0]
    numbered = write_parquet(tmp_path / "other.parquet", [(3, 0), (4, 1)])
    with pytest.raises(DatasetError, match=r"other\.parquet names no classes, but .*a does"):
        open_source(str(tmp_path / "a"), val_source=str(numbered))


def test_an_evaluation_source_that_does_not_fit_is_refused(tmp_path):
    write_pngs(tmp_path / "a" / "ant", 1)
    write_pngs(tmp_path / "b" / "zebra", 1)
    for name in ("train", "val"):
        write_pngs(tmp_path / "both" / name / "ant", 1)
    a, b, both = (str(tmp_path / name) for name in ("a", "b", "both"))
    with pytest.raises(DatasetError, match=f"{b} has the class zebra, expected one of the 1 "):
        open_source(a, val_source=b)
    with pytest.raises(ConfigError, match=f"val_source={both}: it has a training split"):
        open_source(a, val_source=both)
    with pytest.raises(ConfigError, match=f"val_source={a}: {both} has an evaluation"):
        open_source(both, val_source=a)


@pytest.mark.parametrize("label_type", [pa.int8(), pa.uint16(), pa.int32()], ids=str)
def test_labels_of_any_integer_type_will_do(tmp_path, label_type):
    path = write_parquet(tmp_path / "a.parquet", [(1, 0), (2, 1)], label_type=label_type)
    split = open_source(str(path)).splits["train"]
    assert (split.labels.dtype, split.labels.tolist()) == (np.int64, [0, 1])


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
    columns = ", ".join(rf"{name} \(\w+\)" for name in table.column_names)
    with pytest.raises(DatasetError, match=f"has the columns {columns}"):
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
    (left_out,) = source.left_out
    assert left_out.names == (str(tmp_path / "ant" / "circle"),)


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
    assert names_of(beton.path)[4] == "grey 4"


def test_what_is_not_a_source_is_refused(tmp_path, monkeypatch):
    (tmp_path / "own_source.py").write_text(OWN_SOURCE)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"own_source:nothing: expected .* returned NoneType"):
        open_source("own_source:nothing")
    with pytest.raises(ConfigError, match="label_key=x: own_source:greys has no columns"):
        open_source("own_source:greys", label_key="x")
    with pytest.raises(ConfigError, match=r"digits, .* or module:name.* does not exist"):
        open_source("digitz")
