"""What users lay out on their disks, what they mean by it, and what kdcache makes of it.

Each row is a layout, the samples that its author meant, and the outcome: exactly these samples,
with the words that must be said, or a refusal with the words that explain it.
"""

from __future__ import annotations

import io
import os
import socket
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from kdcache.data.outcome import describe
from kdcache.data.pack_tasks import Task, store_one
from kdcache.data.sources import open_source
from kdcache.data.stored_image import StoredImage
from kdcache.errors import DatasetError, KDCacheError, shell_line
from tests.data.source_files import png, value_of, write_parquet


@dataclass(frozen=True)
class Link:
    """A symbolic link; its target is relative to the folder of the layout."""

    target: str


@dataclass(frozen=True)
class Special:
    """A named pipe, or a socket."""

    kind: str


@dataclass(frozen=True)
class Rows:
    """A Parquet file of (grey, label)."""

    rows: list[tuple[int, int]]
    names: list[str] | None = None


@dataclass(frozen=True)
class Tar:
    """A tar file of members; several lists are several archives, joined by `cat`."""

    archives: tuple[dict[str, object], ...]
    trailer: bytes = b""


def tar(*archives, trailer=b""):
    return Tar(archives, trailer)


def pairs(*greys, prefix="", labels=None):
    """Return members NAME.png and NAME.cls for each grey, with label grey % 2."""
    members = {}
    for grey in greys:
        members[f"{prefix}{grey:03}.png"] = grey
        members[f"{prefix}{grey:03}.cls"] = str(grey % 2 if labels is None else labels[grey])
    return members


def as_format(grey, file_format):
    file = io.BytesIO()
    Image.new("L", (4, 3), grey).save(file, file_format)
    return file.getvalue()


@dataclass(frozen=True)
class Row:
    name: str
    meant: str
    files: dict[str, object]
    train: str | None = None
    """`CLASS GREY GREY | CLASS GREY`; None if the layout is refused."""
    val: str | None = None
    says: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    source: str = ""
    """What is named as SOURCE, below the folder of the layout."""
    val_source: str | None = None
    options: dict[str, object] = field(default_factory=dict)


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"
CATS_AND_DOGS = "cat 1 | dog 2"
PLAIN = {"train/cat/a.png": 1, "train/dog/a.png": 2, "val/cat/b.png": 3, "val/dog/b.png": 4}
PLAIN_VAL = "cat 3 | dog 4"


def moved(layout, old, new):
    return {path.replace(old, new): content for path, content in layout.items()}


FOLDERS = [
    Row("plain", "two splits of two classes", PLAIN, CATS_AND_DOGS, PLAIN_VAL),
    Row(
        "capital splits",
        "Train and Val are the splits",
        moved(moved(PLAIN, "train", "Train"), "val", "Val"),
        CATS_AND_DOGS,
        PLAIN_VAL,
    ),
    Row(
        "splits in capitals",
        "TRAIN and TEST are the splits",
        moved(moved(PLAIN, "train", "TRAIN"), "val", "TEST"),
        CATS_AND_DOGS,
        PLAIN_VAL,
    ),
    Row(
        "training and testing",
        "Training and Testing are the splits",
        moved(moved(PLAIN, "train", "Training"), "val", "Testing"),
        CATS_AND_DOGS,
        PLAIN_VAL,
    ),
    Row(
        "training_set and test_set",
        "the folders are the splits",
        moved(moved(PLAIN, "train", "training_set"), "val", "test_set"),
        CATS_AND_DOGS,
        PLAIN_VAL,
    ),
    Row(
        "seg_train and seg_test",
        "the folders are the splits: each name contains one",
        moved(moved(PLAIN, "train", "seg_train"), "val", "seg_test"),
        CATS_AND_DOGS,
        PLAIN_VAL,
    ),
    Row(
        "train and Train",
        "nobody can know which one",
        PLAIN | {"Train/cat/x.png": 9, "Train/dog/x.png": 8},
        refused=("Train", "train"),
    ),
    Row(
        "val and VAL",
        "nobody can know which one",
        PLAIN | {"VAL/cat/x.png": 9},
        refused=("VAL", "val"),
    ),
    Row(
        "wrapper folder",
        "archive is the folder that an archive unpacked to",
        {f"archive/{path}": content for path, content in PLAIN.items()},
        CATS_AND_DOGS,
        PLAIN_VAL,
        says=("archive",),
    ),
    Row(
        "wrapper of a wrapper",
        "both are wrappers",
        {f"download/archive/{path}": content for path, content in PLAIN.items()},
        CATS_AND_DOGS,
        PLAIN_VAL,
        says=("download/archive",),
    ),
    Row(
        "wrapper around classes",
        "cat and dog are the classes",
        {"animals/cat/a.png": 1, "animals/dog/a.png": 2, "README.md": "animals"},
        CATS_AND_DOGS,
        says=("animals",),
    ),
    Row(
        "wrapper beside macOS's folder",
        "archive is a wrapper, __MACOSX is no data",
        {f"archive/{path}": content for path, content in PLAIN.items()}
        | {"__MACOSX/archive/train/cat/._a.png": "x", "__MACOSX/._archive": "x"},
        CATS_AND_DOGS,
        PLAIN_VAL,
        says=("2 files", "__MACOSX"),
    ),
    Row(
        "doubled split folders",
        "train/train/CLASS, as some archives unpack",
        moved(moved(PLAIN, "train/", "train/train/"), "val/", "val/val/"),
        CATS_AND_DOGS,
        PLAIN_VAL,
        says=("train/train",),
    ),
    Row(
        "wrappers with splits side by side",
        "the splits of a and of b; nobody can know whether they belong together",
        {
            "a/train/cat/1.png": 1,
            "a/val/cat/2.png": 2,
            "b/train/cat/3.png": 3,
            "b/val/cat/4.png": 4,
        },
        refused=("a/train", "train/CLASS"),
    ),
    Row(
        "splits below classes",
        "cat/train and cat/val: the splits lie below the classes",
        {"cat/train/1.png": 1, "cat/val/2.png": 2, "dog/train/3.png": 3, "dog/val/4.png": 4},
        refused=("cat/train", "train/CLASS"),
    ),
    Row(
        "detection data",
        "images/train and labels/train of YOLO hold no classes",
        {
            "images/train/1.png": 1,
            "images/val/2.png": 2,
            "labels/train/1.txt": "0 1 1 1 1",
            "labels/val/2.txt": "0 1 1 1 1",
        },
        refused=("images/train",),
    ),
    Row(
        "val beside class folders",
        "val/cat belongs to class cat of an evaluation split",
        {"cat/1.png": 1, "dog/2.png": 2, "val/cat/3.png": 3, "val/dog/4.png": 4},
        refused=("val", "cat"),
    ),
    Row(
        "a class called train",
        "bus, car and train are vehicles",
        {"bus/1.png": 1, "car/2.png": 2, "train/3.png": 3},
        "bus 1 | car 2 | train 3",
        says=("classes", "train"),
    ),
    Row(
        "a class called test",
        "ant, bee and test are classes",
        {"ant/1.png": 1, "bee/2.png": 2, "test/3.png": 3},
        "ant 1 | bee 2 | test 3",
        says=("classes", "test"),
    ),
    Row(
        "flat splits",
        "the labels are somewhere else",
        {"train/1.png": 1, "val/2.png": 2},
        refused=("train", "no class folders"),
    ),
    Row(
        "flat val",
        "the labels of val are somewhere else",
        {"train/cat/1.png": 1, "train/dog/2.png": 2, "val/3.png": 3},
        refused=("val", "no class folders"),
    ),
    Row(
        "evaluation split alone",
        "an evaluation split",
        {"val/cat/1.png": 1, "val/dog/2.png": 2},
        refused=("val", "no train"),
    ),
    Row(
        "extra beside train and val",
        "train is train; extra is something else",
        PLAIN | {"extra/cat/x.png": 9, "extra/dog/x.png": 8},
        CATS_AND_DOGS,
        PLAIN_VAL,
        says=("extra", "2 files"),
    ),
    Row(
        "unlabelled images beside train and val",
        "unlabeled has no classes and is no split",
        PLAIN | {"unlabeled/1.png": 9, "unlabeled/2.png": 8, "unlabeled/3.png": 7},
        CATS_AND_DOGS,
        PLAIN_VAL,
        says=("unlabeled", "3 files"),
    ),
    Row(
        "val and test",
        "val is looked at during the work, test at the end",
        PLAIN | {"test/cat/x.png": 9, "test/dog/x.png": 8},
        CATS_AND_DOGS,
        PLAIN_VAL,
        says=("test", "2 files", "--val-source"),
    ),
    Row(
        "images beside the class folders",
        "they have no class",
        PLAIN | {"train/x.png": 9, "train/y.png": 8, "banner.png": 7},
        CATS_AND_DOGS,
        PLAIN_VAL,
        says=("train/x.png", "3 files"),
    ),
    Row(
        "checkpoints of notebooks",
        "copies that Jupyter made are no samples",
        PLAIN | {"train/cat/.ipynb_checkpoints/a-checkpoint.png": 1},
        CATS_AND_DOGS,
        PLAIN_VAL,
        says=("1 file", ".ipynb_checkpoints"),
    ),
    Row(
        "macOS's attributes",
        "._a.png is no image",
        PLAIN | {"train/cat/._a.png": "\0\5\x16\7"},
        CATS_AND_DOGS,
        PLAIN_VAL,
        says=("._a.png",),
    ),
    Row(
        "thumbnails of a NAS",
        "@eaDir holds previews",
        PLAIN | {"train/cat/@eaDir/a.png/SYNOPHOTO_THUMB_M.png": 1, "@eaDir/x.png": 5},
        CATS_AND_DOGS,
        PLAIN_VAL,
        says=("2 files", "@eaDir"),
    ),
    Row(
        "a workspace in the folder",
        "what kdcache wrote is no class",
        {"cat/1.png": 1, "dog/2.png": 2, "kdcache-workspace/train.json": "{}"},
        CATS_AND_DOGS,
        says=("kdcache-workspace",),
    ),
    Row(
        "files of Windows",
        "Thumbs.db and desktop.ini are no samples",
        PLAIN | {"train/cat/Thumbs.db": "\xd0\xcf", "train/desktop.ini": "[.ShellClassInfo]"},
        CATS_AND_DOGS,
        PLAIN_VAL,
        says=("Thumbs.db",),
    ),
    Row(
        "jfif",
        "JPEGs whose suffix is jfif",
        PLAIN | {"train/cat/b.jfif": as_format(9, "JPEG")},
        "cat 1 9 | dog 2",
        PLAIN_VAL,
    ),
    Row(
        "no suffix",
        "an image without a suffix is an image",
        PLAIN | {"train/cat/b": 9},
        "cat 1 9 | dog 2",
        PLAIN_VAL,
    ),
    Row(
        "wrong suffix",
        "an image called .txt is an image",
        PLAIN | {"train/dog/b.txt": 9, "train/dog/c.txt": "a dog"},
        "cat 1 | dog 2 9",
        PLAIN_VAL,
        says=("1 file", "c.txt"),
    ),
    Row(
        "every suffix unlisted",
        "six images",
        {path.replace(".png", ".img"): content for path, content in PLAIN.items()},
        CATS_AND_DOGS,
        PLAIN_VAL,
    ),
    Row(
        "an image that Pillow cannot read",
        "a HEIC photo is meant as a sample: it counts, and stops the pack later",
        {"cat/1.png": 1, "dog/2.heic": "\0\0\0\x18ftypheic\0\0\0\0mif1heic", "dog/3.png": 3},
        refused=("2.heic", "HEIC"),
        options={"read": True},
    ),
    Row(
        "image that is a git-LFS pointer",
        "the image was not fetched",
        {"cat/1.png": 1, "dog/2.png": LFS},
        refused=("2.png", "git lfs pull"),
        options={"read": True},
    ),
    Row(
        "linked class folder",
        "the folder lies on another disk",
        {"train/cat/1.png": 1, "train/dog": Link("elsewhere"), "../elsewhere/2.png": 2},
        CATS_AND_DOGS,
    ),
    Row(
        "linked split folder",
        "the split lies on another disk",
        {"train": Link("elsewhere"), "../elsewhere/cat/1.png": 1, "../elsewhere/dog/2.png": 2},
        CATS_AND_DOGS,
    ),
    Row(
        "linked subfolder",
        "more cats lie on another disk",
        {
            "train/cat/1.png": 1,
            "train/cat/more": Link("elsewhere"),
            "train/dog/2.png": 2,
            "../elsewhere/3.png": 3,
        },
        "cat 1 3 | dog 2",
    ),
    Row(
        "a link that leads to a circle",
        "no image is read twice",
        {"train/cat/1.png": 1, "train/cat/up": Link("layout"), "train/dog/2.png": 2},
        CATS_AND_DOGS,
        says=("cat/up",),
    ),
    Row(
        "a link to another class",
        "no image is read twice, with two labels",
        {"train/cat/1.png": 1, "train/cat/also": Link("layout/train/dog"), "train/dog/2.png": 2},
        CATS_AND_DOGS,
        says=("cat/also",),
    ),
    Row(
        "two links to one folder in two classes",
        "nobody can know which class",
        {
            "train/cat/also": Link("elsewhere"),
            "train/dog/also": Link("elsewhere"),
            "train/cat/1.png": 1,
            "train/dog/2.png": 2,
            "../elsewhere/3.png": 3,
        },
        refused=("dog/also",),
    ),
    Row(
        "broken link",
        "the file is not mounted",
        {"cat/1.png": 1, "dog/2.png": Link("nowhere.png")},
        refused=("2.png", "broken link"),
    ),
    Row(
        "a link to itself",
        "the file is not there",
        {"cat/1.png": 1, "dog/2.png": Link("layout/dog/2.png")},
        refused=("2.png", "broken link"),
    ),
    Row(
        "domains below a split",
        "real and sketch are the classes, or cat and dog",
        {
            "train/real/cat/1.png": 1,
            "train/real/dog/2.png": 2,
            "train/sketch/cat/3.png": 3,
            "train/sketch/dog/4.png": 4,
        },
        "real 1 2 | sketch 3 4",
        says=("real, sketch", "cat, dog"),
    ),
    Row(
        "broken link to a class",
        "the folder is not mounted",
        {"train/cat/1.png": 1, "train/cow/1.png": 1, "train/dog": Link("nowhere")},
        refused=("dog", "broken link"),
    ),
    Row(
        "named pipe",
        "no image; it must not be waited for",
        {"cat/1.png": 1, "cat/x.png": Special("pipe"), "dog/2.png": 2},
        CATS_AND_DOGS,
        says=("x.png",),
    ),
    Row(
        "socket",
        "no image",
        {"cat/1.png": 1, "cat/s": Special("socket"), "dog/2.png": 2},
        CATS_AND_DOGS,
        says=("cat/s",),
    ),
    Row(
        "an empty class folder",
        "a class without images cannot be learned",
        {"cat/1.png": 1, "dog/2.png": 2, "cow/notes.txt": "none yet"},
        refused=("cow", "no images"),
    ),
    Row(
        "one class",
        "the folder is probably the wrong one",
        {"cat/1.png": 1, "cat/2.png": 2},
        "cat 1 2",
        says=("one class",),
    ),
    Row(
        "nearly all images in one class",
        "probably a folder of unsorted images",
        {"cat/1.png": 1} | {f"all/{number}.png": number for number in range(2, 60)},
        "all " + " ".join(map(str, sorted(range(2, 60), key=str))) + " | cat 1",
        says=("all", "58 of 59"),
    ),
    Row(
        "numeric folders",
        "the folders are labels: 2 comes before 10",
        {f"{number}/{number}.png": number for number in range(12)},
        " | ".join(f"{number} {number}" for number in range(12)),
        says=("as numbers",),
    ),
    Row(
        "numeric folders with zeros",
        "the folders are labels",
        {f"{number:02}/{number}.png": number for number in range(12)},
        " | ".join(f"{number:02} {number}" for number in range(12)),
        says=("as numbers",),
    ),
    Row(
        "two folders with one number",
        "nobody can know whether 1 and 01 are one class",
        {"1/1.png": 1, "01/2.png": 2, "2/3.png": 3},
        refused=("01", "1"),
    ),
    Row(
        "a class in val alone",
        "zebra cannot be learned",
        PLAIN | {"val/zebra/x.png": 9},
        refused=("zebra",),
    ),
    Row(
        "one name in two Unicode forms",
        "café is café, as macOS and Linux write it",
        {"train/cafe\u0301/1.png": 1, "train/tea/2.png": 2, "val/caf\xe9/3.png": 3},
        "caf\xe9 1 | tea 2",
        "caf\xe9 3",
    ),
    Row(
        "classes that differ by case",
        "probably one class",
        {"Cat/1.png": 1, "cat/2.png": 2, "dog/3.png": 3},
        "Cat 1 | cat 2 | dog 3",
        says=("Cat and cat",),
    ),
    Row(
        "an evaluation class in another case",
        "cat, written differently",
        PLAIN | {"val/Cat/x.png": 9},
        refused=("Did you mean cat",),
    ),
    Row(
        "same folders in every class",
        "indoor and outdoor are kinds of cats and dogs, or the classes",
        {
            "cat/indoor/1.png": 1,
            "cat/outdoor/2.png": 2,
            "dog/indoor/3.png": 3,
            "dog/outdoor/4.png": 4,
        },
        "cat 1 2 | dog 3 4",
        says=("indoor", "outdoor"),
    ),
    Row(
        "images and one table",
        "the images are the samples, the table describes them",
        PLAIN | {"metadata.parquet": Rows([(9, 0)])},
        CATS_AND_DOGS,
        PLAIN_VAL,
        says=("metadata.parquet",),
    ),
    Row(
        "no images at all",
        "nothing",
        {"cat/notes.txt": "x"},
        refused=("no images",),
    ),
    Row(
        "a class name in Latin-1",
        "a name that JSON cannot hold",
        {"caf\udce9/1.png": 1, "tea/2.png": 2},
        refused=("UTF-8",),
    ),
    Row(
        "a file name in Latin-1",
        "an image like any other",
        {"cat/caf\udce9.png": 1, "dog/2.png": 2},
        CATS_AND_DOGS,
    ),
]

NAMES = ["cat", "dog"]
TABLES = [
    Row(
        "train and test",
        "two splits",
        {"train-0.parquet": Rows([(1, 0), (2, 1)]), "test-0.parquet": Rows([(3, 0), (4, 1)])},
        "0 1 | 1 2",
        "0 3 | 1 4",
    ),
    Row(
        "names in another order",
        "a label is its name",
        {
            "train.parquet": Rows([(1, 0), (2, 1)], ["cat", "dog"]),
            "test.parquet": Rows([(3, 1), (4, 0)], ["dog", "cat"]),
        },
        CATS_AND_DOGS,
        PLAIN_VAL,
        says=("by name",),
    ),
    Row(
        "shards with names in another order",
        "a label is its name",
        {
            "train-0.parquet": Rows([(1, 0), (2, 1)], ["cat", "dog"]),
            "train-1.parquet": Rows([(3, 1), (4, 0)], ["dog", "cat"]),
        },
        "cat 1 3 | dog 2 4",
        says=("by name",),
    ),
    Row(
        "shards with different classes",
        "each shard names its own classes",
        {
            "train-0.parquet": Rows([(1, 0), (2, 1)], ["cat", "dog"]),
            "train-1.parquet": Rows([(3, 0), (4, 1)], ["dog", "cow"]),
        },
        "cat 1 | dog 2 3 | cow 4",
        says=("by name",),
    ),
    Row(
        "names in one split alone",
        "nobody can know whether the numbers are the same",
        {
            "train.parquet": Rows([(1, 0), (2, 1)], NAMES),
            "test.parquet": Rows([(3, 0), (4, 1)]),
        },
        refused=("test.parquet", "classes.txt"),
    ),
    Row(
        "a list of names beside tables",
        "the list names the labels",
        {
            "train.parquet": Rows([(1, 0), (2, 1)]),
            "test.parquet": Rows([(3, 0), (4, 1)]),
            "classes.txt": "cat\r\ndog\r\n\r\n",
        },
        CATS_AND_DOGS,
        PLAIN_VAL,
    ),
    Row(
        "a list that contradicts the table",
        "one of the two is wrong",
        {"train.parquet": Rows([(1, 0), (2, 1)], NAMES), "classes.txt": "dog\ncat\n"},
        refused=("classes.txt",),
    ),
    Row(
        "an evaluation class that is not trained",
        "cow cannot be learned",
        {
            "train.parquet": Rows([(1, 0), (2, 1)], NAMES),
            "test.parquet": Rows([(3, 0), (4, 2)], [*NAMES, "cow"]),
        },
        refused=("cow",),
    ),
    Row(
        "labels from 1",
        "numbers that may be a mistake",
        {"train.parquet": Rows([(1, 1), (2, 2)])},
        refused=("--compact-labels", "--classes 3"),
    ),
    Row(
        "labels from 1, renumbered",
        "two classes",
        {"train.parquet": Rows([(1, 1), (2, 2), (3, 1)])},
        "1 1 3 | 2 2",
        options={"compact_labels": True},
    ),
    Row(
        "labels from 1, meant",
        "four classes, of which two have images",
        {"train.parquet": Rows([(1, 1), (2, 2)])},
        "1 1 | 2 2",
        says=("2 classes", "0, 3"),
        options={"classes": 4},
    ),
    Row(
        "a huge label",
        "an identifier, not a label",
        {"train.parquet": Rows([(1, 0), (2, 2**62)])},
        refused=(f"{2**62:,}", "--compact-labels"),
    ),
    Row(
        "a huge label, renumbered",
        "identifiers",
        {"train.parquet": Rows([(1, 7), (2, 2**62)])},
        f"7 1 | {2**62} 2",
        options={"compact_labels": True},
    ),
    Row(
        "named classes without images",
        "a subset of a named data set",
        {"train.parquet": Rows([(1, 1), (2, 3)], ["ant", "cat", "cow", "dog"])},
        CATS_AND_DOGS,
        says=("ant, cow", "2 classes"),
    ),
    Row(
        "extra beside train and test",
        "train is train",
        {
            "train-0.parquet": Rows([(1, 0), (2, 1)]),
            "test-0.parquet": Rows([(3, 0), (4, 1)]),
            "extra-0.parquet": Rows([(5, 0), (6, 1)]),
        },
        "0 1 | 1 2",
        "0 3 | 1 4",
        says=("extra-0.parquet",),
    ),
    Row(
        "unlabelled shards alone beside test",
        "there is no training split",
        {
            "unlabeled-0.parquet": Rows([(1, 0), (2, 1)]),
            "test-0.parquet": Rows([(3, 0), (4, 1)]),
        },
        refused=("unlabeled",),
    ),
    Row(
        "two configurations in folders",
        "two data sets",
        {
            "full/train-0.parquet": Rows([(1, 0), (2, 1)]),
            "small/train-0.parquet": Rows([(1, 0), (2, 1)]),
        },
        refused=("full", "small"),
    ),
    Row(
        "two configurations in names",
        "two data sets",
        {
            "fine-train.parquet": Rows([(1, 0), (2, 1)]),
            "coarse-train.parquet": Rows([(1, 0), (2, 1)]),
        },
        refused=("fine", "coarse"),
    ),
    Row(
        "parts of one split in folders",
        "one split",
        {
            "train/a/0.parquet": Rows([(1, 0), (2, 1)]),
            "train/b/0.parquet": Rows([(3, 1)]),
        },
        "0 1 | 1 2 3",
    ),
    Row(
        "capital split files",
        "the splits",
        {"Train.parquet": Rows([(1, 0), (2, 1)]), "TEST.parquet": Rows([(3, 0)])},
        "0 1 | 1 2",
        "0 3",
    ),
    Row(
        "an empty shard",
        "nothing in it",
        {"train-0.parquet": Rows([(1, 0), (2, 1)]), "train-1.parquet": Rows([])},
        "0 1 | 1 2",
    ),
    Row(
        "a folder that is called like a table",
        "as Spark writes tables",
        {"train.parquet/part-0.parquet": Rows([(1, 0), (2, 1)]), "train.parquet/_SUCCESS": ""},
        "0 1 | 1 2",
    ),
    Row(
        "shards of a cache",
        "hidden folders hold no data",
        {
            "data/train-0.parquet": Rows([(1, 0), (2, 1)]),
            ".cache/huggingface/train-0.parquet": Rows([(9, 0)]),
        },
        "0 1 | 1 2",
        says=(".cache", "1 file"),
    ),
    Row(
        "git-LFS pointer",
        "the shard was not fetched",
        {"train-0.parquet": Rows([(1, 0)]), "train-1.parquet": LFS},
        refused=("train-1.parquet", "git lfs pull"),
    ),
    Row(
        "tables and a picture for the README",
        "the tables are the samples",
        {"train.parquet": Rows([(1, 0), (2, 1)]), "assets/logo.png": 9},
        "0 1 | 1 2",
        says=("logo.png",),
    ),
    Row(
        "shards of two kinds without splits",
        "one split, or two data sets",
        {"a/animals.parquet": Rows([(1, 0), (2, 1)]), "b/plants-0.parquet": Rows([(3, 1)])},
        "0 1 | 1 2 3",
        says=("1 like a/animals", "1 like b/plants"),
    ),
    Row(
        "a missing shard",
        "all three shards",
        {
            "train-00000-of-00003.parquet": Rows([(1, 0)]),
            "train-00002-of-00003.parquet": Rows([(2, 1)]),
        },
        refused=("train-00001-of-00003", "2 shards of 3"),
    ),
    Row(
        "shards of two formats",
        "nobody can know which are meant",
        {"a.tar": Tar(({"0.png": 1, "0.cls": "0"},)), "b.parquet": Rows([(1, 0)])},
        refused=("a.tar", "b.parquet", "two formats"),
    ),
    Row(
        "a pattern that names extra shards",
        "train and extra together",
        {
            "train-0.parquet": Rows([(1, 0), (2, 1)]),
            "extra-0.parquet": Rows([(5, 0)]),
            "test-0.parquet": Rows([(3, 0)]),
        },
        "0 1 5 | 1 2",
        source="{train,extra}-0.parquet",
        says=("extra-0.parquet",),
    ),
    Row(
        "a pattern",
        "these shards",
        {
            "a-0.parquet": Rows([(1, 0)]),
            "a-1.parquet": Rows([(2, 1)]),
            "b-0.parquet": Rows([(9, 1)]),
        },
        "0 1 | 1 2",
        source="a-{0..1}.parquet",
    ),
]

ARCHIVES = [
    Row("plain tar", "two samples", {"a.tar": tar(pairs(2, 3))}, "0 2 | 1 3"),
    Row(
        "dotted keys beside plain ones",
        "every pair is a sample",
        {"a.tar": tar(pairs(2, 3) | pairs(4, 5, prefix="img_v1."))},
        "0 2 4 | 1 3 5",
    ),
    Row(
        "only dotted keys",
        "every pair is a sample",
        {"a.tar": tar(pairs(2, 3, prefix="frame_1."))},
        "0 2 | 1 3",
    ),
    Row(
        "a mask beside each image",
        "0.seg.png belongs to sample 0 and is no sample",
        {"a.tar": tar(pairs(2, 3) | {"002.seg.png": 9})},
        "0 2 | 1 3",
        says=("002.seg.png", "1 file"),
    ),
    Row(
        "a dotted key without a label",
        "an unlabelled image",
        {"a.tar": tar(pairs(2, 3) | {"img_v1.5.png": 9})},
        refused=("img_v1.5", "no label"),
    ),
    Row(
        "tars joined by cat",
        "the samples of both",
        {"a.tar": tar(pairs(2, 3), pairs(4, 5))},
        "0 2 4 | 1 3 5",
    ),
    Row(
        "bytes after the end of a tar",
        "nobody can know what they are",
        {"a.tar": tar(pairs(2, 3), trailer=b"no tar" * 200)},
        refused=("a.tar", "after its end"),
    ),
    Row(
        "extra shards",
        "train is train",
        {
            "train-0.tar": tar(pairs(2, 3)),
            "test-0.tar": tar(pairs(4, 5)),
            "extra-0.tar": tar(pairs(6, 7)),
        },
        "0 2 | 1 3",
        "0 4 | 1 5",
        says=("extra-0.tar",),
    ),
    Row(
        "a shard that is compressed",
        "all shards",
        {"a-0.tar": tar(pairs(2, 3)), "a-1.tgz": b"\x1f\x8b\b"},
        refused=("a-1.tgz", "gunzip"),
    ),
    Row(
        "only compressed shards",
        "the shards",
        {"a-0.tar.gz": b"\x1f\x8b\b", "a-1.tar.gz": b"\x1f\x8b\b"},
        refused=("a-0.tar.gz", "gunzip"),
    ),
    Row(
        "a compressed file",
        "the shard",
        {"a.tgz": b"\x1f\x8b\b"},
        refused=("a.tgz", "gunzip"),
        source="a.tgz",
    ),
    Row(
        "other image formats",
        "bmp and gif are images too",
        {"a.tar": tar({"0.bmp": as_format(4, "BMP"), "0.cls": "0", "1.gif": 5, "1.cls": "1"})},
        "0 4 | 1 5",
    ),
    Row(
        "labels from 1",
        "numbers that may be a mistake",
        {"a.tar": tar(pairs(2, 3, labels={2: 1, 3: 2}))},
        refused=("--compact-labels",),
    ),
    Row(
        "a list with empty lines and a byte order mark",
        "two names",
        {"a.tar": tar(pairs(2, 3)), "classes.txt": "\ufeffcat \ndog\n\n"},
        "cat 2 | dog 3",
    ),
    Row(
        "a list of other classes for each split",
        "labels follow the names",
        {
            "train/0.tar": tar(pairs(2, 3)),
            "train/classes.txt": "cat\ndog\n",
            "val/0.tar": tar(pairs(4, 5)),
            "val/classes.txt": "dog\ncat\n",
        },
        "cat 2 | dog 3",
        "cat 5 | dog 4",
        says=("by name",),
    ),
    Row(
        "macOS's attributes beside shards",
        "._a.tar is no shard",
        {"a.tar": tar(pairs(2, 3)), "._a.tar": "\0\5\x16\7"},
        "0 2 | 1 3",
        says=("._a.tar",),
    ),
    Row(
        "an archive of class folders",
        "images in class folders, which must be unpacked",
        {"a.tar": tar({"cat/1.png": 1, "dog/2.png": 2})},
        refused=("no label",),
    ),
]

OTHERS = [
    Row(
        "an evaluation source with names in another order",
        "a label is its name",
        {
            "a/cat/1.png": 1,
            "a/dog/2.png": 2,
            "test.parquet": Rows([(3, 1), (4, 0)], ["dog", "cat"]),
        },
        CATS_AND_DOGS,
        PLAIN_VAL,
        source="a",
        val_source="test.parquet",
        says=("by name",),
    ),
    Row(
        "an evaluation source without names",
        "nobody can know whether 0 is cat",
        {"a/cat/1.png": 1, "a/dog/2.png": 2, "test.parquet": Rows([(3, 0), (4, 1)])},
        refused=("test.parquet", "classes.txt"),
        source="a",
        val_source="test.parquet",
    ),
    Row(
        "an evaluation source of numbers for numeric folders",
        "nobody can know whether 0 is the folder 0",
        {"a/0/1.png": 1, "a/1/2.png": 2, "test.parquet": Rows([(3, 0), (4, 1)])},
        refused=("test.parquet", "classes.txt"),
        source="a",
        val_source="test.parquet",
    ),
    Row(
        "a zip file",
        "an archive that must be unpacked",
        {"data.zip": "PK\x03\x04"},
        refused=("data.zip", "zip"),
        source="data.zip",
    ),
    Row(
        "a pipe as source",
        "nothing that can be read twice",
        {"data.tar": Special("pipe")},
        refused=("data.tar",),
        source="data.tar",
    ),
]

ROWS = [
    *(pytest.param(row, id=f"folders: {row.name}") for row in FOLDERS),
    *(pytest.param(row, id=f"tables: {row.name}") for row in TABLES),
    *(pytest.param(row, id=f"archives: {row.name}") for row in ARCHIVES),
    *(pytest.param(row, id=f"others: {row.name}") for row in OTHERS),
]


def make(root, files):
    """Write a layout below `root`; `..` leads to a folder beside it."""
    for path, content in files.items():
        place = Path(os.path.normpath(root / path))
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Link):
            place.symlink_to(root.parent / content.target)
        elif isinstance(content, Special) and content.kind == "pipe":
            os.mkfifo(place)
        elif isinstance(content, Special):
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(place))
        elif isinstance(content, Rows):
            write_parquet(place, content.rows, names=content.names)
        elif isinstance(content, Tar):
            place.write_bytes(b"".join(map(written_tar, content.archives)) + content.trailer)
        else:
            place.write_bytes(as_bytes(content))


def as_bytes(content):
    if isinstance(content, int):
        return png(content)
    return content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape")


def written_tar(members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(as_bytes(content))
            archive.addfile(info, io.BytesIO(as_bytes(content)))
    return file.getvalue()


def read(split, names):
    """Return `CLASS GREY GREY | CLASS GREY` for a split, with the classes in label order."""
    found = {}
    for position, label in enumerate(split.labels.tolist()):
        found.setdefault(label, []).append(str(value_of(split.read(position))))
    return " | ".join(f"{names[label]} {' '.join(found[label])}" for label in sorted(found))


@pytest.mark.parametrize("row", ROWS)
def test_a_layout_is_understood_or_refused(row, tmp_path):
    root = tmp_path / "layout"
    make(root, row.files)
    options = {name: value for name, value in row.options.items() if name != "read"}
    val_source = None if row.val_source is None else str(root / row.val_source)
    try:
        source = open_source(str(root / row.source), val_source=val_source, **options)
        if "read" in row.options:  # pack reads every image, and stops at one that is none
            for position in range(len(source.splits["train"].labels)):
                found = store_one(Task(source.splits["train"], "raw", None, 10**8), position)
                if not isinstance(found, StoredImage):
                    raise DatasetError(f"{found.name}: {found.reason}")
    except KDCacheError as error:
        said = shell_line(error)
        assert row.train is None, said
        assert "\n" not in said
        for word in row.refused:
            assert word in said
        return
    said = "\n".join([*source.notes, *describe(source, source.splits)])
    assert row.train is not None, f"not refused; {said}"
    assert read(source.splits["train"], source.class_names) == row.train
    val = source.splits.get("val")
    assert (None if val is None else read(val, source.class_names)) == row.val
    for word in row.says:
        assert word in said
    if not row.says:
        assert not describe_left_outs(source)


def describe_left_outs(source):
    return [one for one in source.left_out if one.why != "not shards"]


def test_the_table_has_a_row_for_each_way_that_data_go_wrong():
    assert len(ROWS) >= 60
    assert all(row.values[0].meant for row in ROWS)
    assert all((row.values[0].train is None) == bool(row.values[0].refused) for row in ROWS)
