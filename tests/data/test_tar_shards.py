"""WebDataset shards: written by the webdataset package, read without unpacking anything."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import tarfile

import numpy as np
import pytest
import webdataset
from PIL import Image

from kdcache.data.beton import open_beton
from kdcache.data.pack import pack
from kdcache.data.sources import open_source
from kdcache.errors import ConfigError, DatasetError
from kdcache.options import PackOptions


def encoded(value, file_format="PNG"):
    """Return an image file of one grey."""
    file = io.BytesIO()
    Image.new("L", (9, 7), value).save(file, file_format)
    return file.getvalue()


def value_of(content):
    """Return the grey of an image file of one grey."""
    return Image.open(io.BytesIO(content)).getpixel((0, 0))


def write_shard(path, samples):
    """Write (key, members) with webdataset's own writer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as writer:
        for key, members in samples:
            writer.write({"__key__": key, **members})
    return path


def write_greys(path, *values, labels=None):
    """Write one PNG with its `.cls` for each grey; the labels alternate unless they are told."""
    labels = labels or [value % 2 for value in values]
    samples = [
        (f"{value:04}", {"png": encoded(value), "cls": label})
        for value, label in zip(values, labels, strict=True)
    ]
    return write_shard(path, samples)


def write_members(path, *members):
    """Write a tar file by hand, with members of any kind."""
    with tarfile.open(path, "w") as archive:
        for member, content in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def contents(split):
    """Return grey value and label of each image of a split, in its order."""
    return [(value_of(split.read(i)), int(label)) for i, label in enumerate(split.labels)]


# webdataset leaves the shards that it has read to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_shards_are_read_as_the_webdataset_package_reads_them(tmp_path):
    rng = np.random.default_rng(0)
    pixels = [Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(20)]
    with webdataset.ShardWriter(str(tmp_path / "shard-%03d.tar"), maxcount=6, verbose=0) as writer:
        for number, image in enumerate(pixels):
            writer.write({"__key__": f"{number:04}", "png": image, "cls": number % 3})
    urls = str(tmp_path / "shard-{000..003}.tar")
    expected = list(
        webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8").to_tuple("png", "cls")
    )
    for source in (urls, str(tmp_path), str(tmp_path / "shard-*.tar")):
        split = open_source(source).splits["train"]
        assert split.labels.tolist() == [label for _, label in expected]
        for position, (image, _) in enumerate(expected):
            found = np.asarray(Image.open(io.BytesIO(split.read(position))))
            assert np.array_equal(found, image)


def test_shards_are_packed_alike_with_any_number_of_workers(tmp_path):
    write_greys(tmp_path / "s" / "train-0.tar", *range(40))
    write_greys(tmp_path / "s" / "val-0.tar", *range(90, 99))
    for workers in (1, 2):
        workspace = tmp_path / str(workers)
        pack(PackOptions(str(tmp_path / "s"), workspace=workspace, num_workers=workers))
        beton = open_beton(workspace / "train.beton")
        assert beton.labels.tolist() == [value % 2 for value in range(40)]
    for name in ("train.beton", "val.beton"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train/0.tar", "val/0.tar"),
        ("train/0.tar", "valid/0.tar"),
        ("imagenet1k-train-0000.tar", "imagenet1k-validation-00.tar"),
        ("deep/0000.tar", "deep/dev-0000.tar"),
    ],
)
def test_a_shards_name_or_folder_tells_its_split(tmp_path, train, val):
    write_greys(tmp_path / train, 10, 11)
    write_greys(tmp_path / val, 20)
    source = open_source(str(tmp_path))
    assert contents(source.splits["train"]) == [(10, 0), (11, 1)]
    assert contents(source.splits["val"]) == [(20, 0)]


def test_two_patterns_are_two_splits(tmp_path):
    for number in range(3):
        write_greys(tmp_path / f"a-{number}.tar", 11 * number)
    write_greys(tmp_path / "b-0.tar", 7)
    train, val = (str(tmp_path / name) for name in ("a-{0..2}.tar", "b-*.tar"))
    source = open_source(train, val_source=val)
    assert contents(source.splits["train"]) == [(0, 0), (11, 1), (22, 0)]
    assert contents(source.splits["val"]) == [(7, 1)]
    one_pattern = open_source(str(tmp_path / "{a-{0..2},b-0}.tar"))
    assert contents(one_pattern.splits["train"]) == [(0, 0), (11, 1), (22, 0), (7, 1)]


def test_braces_give_the_order_and_names_do_elsewhere(tmp_path):
    for number in (0, 1, 2):
        write_greys(tmp_path / f"{number}.tar", number)
    order = {"{2..0}.tar": [2, 1, 0], "{1,0,2}.tar": [1, 0, 2], "*.tar": [0, 1, 2], "": [0, 1, 2]}
    for pattern, expected in order.items():
        split = open_source(str(tmp_path / pattern)).splits["train"]
        assert [value for value, _ in contents(split)] == expected


def test_a_shard_may_be_called_what_looks_like_a_pattern(tmp_path):
    write_greys(tmp_path / "a[1].tar", 5)
    write_greys(tmp_path / "a1.tar", 8)
    source = open_source(str(tmp_path / "a[1].tar"), classes=2)
    assert contents(source.splits["train"]) == [(5, 1)]


def test_the_case_of_a_suffix_does_not_count(tmp_path):
    path = write_greys(tmp_path / "a.TAR", 5)
    for source in (path, tmp_path):
        assert contents(open_source(str(source), classes=2).splits["train"]) == [(5, 1)]


def test_a_label_stands_in_cls_or_in_json(tmp_path):
    about = {"label": 2, "fine": 5, "text": "a cat"}
    write_shard(
        tmp_path / "a.tar",
        [
            ("0", {"jpg": encoded(10, "JPEG"), "cls": 1}),
            ("1", {"jpeg": encoded(20, "JPEG"), "json": about}),
            ("2", {"webp": encoded(30, "WEBP"), "cls": 0, "json": about}),
        ],
    )
    source = open_source(str(tmp_path / "a.tar"))
    assert source.splits["train"].labels.tolist() == [1, 2, 0]
    assert source.class_names == ["0", "1", "2"]
    assert source.splits["train"].name(1) == f"{tmp_path / 'a.tar'}, 1.jpeg"


def test_the_field_of_the_label_may_be_chosen(tmp_path):
    samples = [
        (str(number), {"png": encoded(number), "cls": 9, "json": {"fine": 1 - number}})
        for number in range(2)
    ]
    path = str(write_shard(tmp_path / "a.tar", samples))
    assert open_source(path, label_key="fine").splits["train"].labels.tolist() == [1, 0]
    with pytest.raises(ConfigError, match=r"label_key=coarse: .* of 0\.json in .*: fine"):
        open_source(path, label_key="coarse")


@pytest.mark.parametrize("name", ["classes.txt", "classnames.txt"])
def test_a_list_beside_the_shards_names_the_classes(tmp_path, name):
    write_greys(tmp_path / "train" / "0.tar", 0, 1)
    (tmp_path / "train" / name).write_text("ant\nsea lion\n")
    assert open_source(str(tmp_path)).class_names == ["ant", "sea lion"]
    (tmp_path / "train" / name).write_text("ant\n")
    with pytest.raises(DatasetError, match="has the label 1, expected labels below 1"):
        open_source(str(tmp_path))
    (tmp_path / "train" / name).unlink()
    write_greys(tmp_path / "val" / "0.tar", 0)
    (tmp_path / name).write_text("bee\ncat\n")
    assert open_source(str(tmp_path)).class_names == ["bee", "cat"]


def test_members_of_a_sample_need_not_stand_side_by_side(tmp_path):
    members = [(f"{n}.png", encoded(n)) for n in range(3)] + [
        (f"{n}.cls", b"%d" % n) for n in range(3)
    ]
    path = write_members(tmp_path / "a.tar", *members)
    split = open_source(str(path)).splits["train"]
    assert contents(split) == [(0, 0), (1, 1), (2, 2)]
    assert split.read(1) == encoded(1)


def test_samples_of_one_name_in_two_folders_are_two(tmp_path):
    members = [
        (f"{folder}/7.{extension}", content)
        for folder, value in (("a", 0), ("b", 1))
        for extension, content in (("PNG", encoded(value)), ("cls", b"%d\n" % value))
    ]
    path = write_members(tmp_path / "a.tar", *members)
    assert contents(open_source(str(path)).splits["train"]) == [(0, 0), (1, 1)]


def test_what_is_no_sample_is_left_out_and_told(tmp_path):
    path = write_members(
        tmp_path / "a.tar",
        ("0.png", encoded(5)),
        ("0.cls", b"0"),
        ("0.depth.png", encoded(9)),
        ("README.md", b"about"),
        ("._0.png", b"macOS"),
        ("0", b"no extension"),
    )
    source = open_source(str(path))
    assert contents(source.splits["train"]) == [(5, 0)]
    assert {one.why: one.names for one in source.left_out} == {
        "hidden": (f"{path}, ._0.png",),
        "without a key or an extension": (f"{path}, 0",),
        "further parts of a sample": (f"{path}, 0.depth.png",),
        "without an image or a label": (f"{path}, README.md",),
    }


class Bomb:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_nothing_is_unpickled_or_unpacked(tmp_path):
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    path = write_members(
        tmp_path / "a.tar",
        ("/absolute/0.png", encoded(5)),
        ("/absolute/0.cls", b"0"),
        *((f"/absolute/0.{extension}", bomb) for extension in ("pyd", "pickle", "pkl", "npy")),
        ("../../outside.png", encoded(6)),
        ("../../outside.cls", b"1"),
    )
    split = open_source(str(path)).splits["train"]
    assert contents(split) == [(5, 0), (6, 1)]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.tar"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_a_link_is_not_followed(tmp_path, kind):
    (tmp_path / "secret.png").write_bytes(encoded(1))
    link = tarfile.TarInfo("0.png")
    link.type, link.linkname = kind, str(tmp_path / "secret.png")
    path = write_members(tmp_path / "a.tar", (link, b""), ("0.cls", b"0"))
    with pytest.raises(DatasetError, match=r"a\.tar, 0\.png is a link or a special file"):
        open_source(str(path))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            [("0.png", b"")],
            r"sample 0 in .* has no label \(png\), expected NAME\.cls or NAME\.json",
        ),
        ([("0.cls", b"1")], "sample 0 in .* has 0 images"),
        ([("0.json", b'{"label": 1}')], "sample 0 in .* has 0 images"),
        ([("0.png", b""), ("0.jpg", b""), ("0.cls", b"1")], "sample 0 in .* has 2 images"),
        ([("0.png", b""), ("0.cls", b"cat")], r"0\.cls is 'cat', expected a label"),
        ([("0.png", b""), ("0.cls", b"-1")], r"0\.cls is '-1', expected a label"),
        ([("0.png", b""), ("0.json", b'{"label": 1.5}')], "1.5.*as its field label"),
        ([("0.png", b""), ("0.json", b'{"label": true}')], "true.*as its field label"),
        ([("0.png", b""), ("0.json", b"[3]")], r"\[3\].*as its field label"),
        ([("0.png", b""), ("0.json", b"{")], r"0\.json is '\{'"),
        ([("0.png", b""), ("0.png", b""), ("0.cls", b"1")], r"holds 0\.png twice"),
        ([("a.txt", b"")], "holds no samples"),
    ],
    ids=str,
)
def test_a_sample_that_is_not_one_is_refused_and_named(tmp_path, members, message):
    path = write_members(tmp_path / "a.tar", *members)
    with pytest.raises(DatasetError, match=message):
        open_source(str(path))


def test_a_shard_that_is_cut_off_is_refused_wherever_the_cut_is(tmp_path):
    path = write_greys(tmp_path / "a.tar", 1, 2, 3)
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        end = max(member.offset_data + 512 for member in archive)
    for cut in (0, 100, 512, 1000, end - 512, end - 100, end):
        path.write_bytes(whole[:cut])
        with pytest.raises(
            DatasetError, match=r"a\.tar (ends inside|is damaged|is not readable|is empty)"
        ):
            open_source(str(path))
    damaged = bytearray(whole)
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        damaged[archive.getmembers()[2].offset] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DatasetError, match="is damaged or cut off"):
        open_source(str(path))


def test_a_compressed_shard_tells_the_remedy(tmp_path):
    plain = write_greys(tmp_path / "plain" / "a.tar", 1)
    path = tmp_path / "a.tar"
    path.write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(DatasetError, match="gunzip"):
        open_source(str(path))


@pytest.mark.parametrize("pattern", ["a-{0..3}.tar", "b-*.tar", "a-{0..1.tar"])
def test_shards_that_are_not_there_are_asked_wrongly(tmp_path, pattern):
    write_greys(tmp_path / "a-0.tar", 1)
    source = str(tmp_path / pattern)
    with pytest.raises(ConfigError, match=r"SOURCE is .*tar, expected"):
        open_source(source)


def test_the_identity_of_shards_tells_of_changes(tmp_path, monkeypatch):
    path = write_greys(tmp_path / "a-0.tar", 1, 2)
    pattern = str(tmp_path / "a-{0..0}.tar")
    before = open_source(pattern).identity
    assert before == json.loads(json.dumps(before))
    assert (before["kind"], before["path"]) == ("webdataset", pattern)
    assert open_source(pattern).identity == before
    monkeypatch.chdir(tmp_path)
    assert open_source("a-{0..0}.tar").identity == before
    path.write_bytes(path.read_bytes() + bytes(512))
    assert open_source(pattern).identity != before


@pytest.mark.parametrize("change", ["another size", "another time", "another split"])
def test_the_identity_of_shards_tells_of_each_change_alone(tmp_path, change):
    paths = [tmp_path / name for name in ("train/0.tar", "train/1.tar", "val/2.tar")]
    for value, path in enumerate(paths):
        write_greys(path, value)
    before = open_source(str(tmp_path)).identity
    time = paths[1].stat().st_mtime_ns
    if change == "another size":
        paths[1].write_bytes(paths[1].read_bytes() + bytes(512))
        os.utime(paths[1], ns=(time, time))
    elif change == "another time":
        os.utime(paths[1], ns=(time, time + 1))
    else:  # and all shards in the same order
        paths[1].rename(tmp_path / "val" / "1.tar")
    assert open_source(str(tmp_path)).identity != before


def test_the_splits_of_shards_pickle(tmp_path):
    split = open_source(str(write_greys(tmp_path / "a.tar", 1, 2))).splits["train"]
    copy = pickle.loads(pickle.dumps(split))  # noqa: S301  (our own)
    assert (copy.read(1), copy.name(1)) == (split.read(1), split.name(1))
