from __future__ import annotations

import functools
import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kdcache.data.beton import open_beton
from kdcache.data.beton_manifest import BetonManifest
from kdcache.data.pack import pack
from kdcache.errors import CacheMismatchError, ConfigError
from kdcache.options import PackOptions
from kdcache.rng import generator
from tests.conftest import write_images


def packed(source, workspace, **options):
    """Pack without an evaluation split, unless told otherwise."""
    usual = {"val_fraction": 0, "num_workers": 1}
    return pack(PackOptions(str(source), workspace=workspace, **(usual | options))).to_json()


def write_grey(path, value, size=(8, 8)):
    """Write a PNG of one grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)


def pixel_rows(files):
    """Return the pixels of image files in [0, 1]: (pixels, 3)."""
    rows = []
    for path in files:
        with Image.open(path) as image:
            rows.append(np.asarray(image.convert("RGB")).reshape(-1, 3) / 255)
    return np.concatenate(rows)


def stats(workspace):
    """Return what the file system knows of each file in a workspace."""
    return {path.name: path.stat() for path in workspace.iterdir()}


def names(workspace):
    """Return the names of all files and folders in a workspace."""
    return sorted(path.name for path in workspace.iterdir())


TRAIN_FILES = ["train.beton", "train.digests.npy", "train.json", "train.names.parquet"]
VAL_FILES = ["val.beton", "val.digests.npy", "val.json", "val.names.parquet"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An ImageFolder, its pack with an evaluation split, and the pack's result. Read only."""
    folder = write_images(tmp_path_factory.mktemp("once"), count=12, classes=3, sides=(10, 10))
    workspace = tmp_path_factory.mktemp("once-workspace")
    return folder, workspace, packed(folder, workspace, val_fraction=0.25)


@pytest.fixture
def again(finished, tmp_path):
    """Return a function that packs `finished` again, in a copy of its workspace."""
    folder, workspace, _ = finished
    shutil.copytree(workspace, tmp_path / "w")
    return functools.partial(packed, folder, tmp_path / "w", val_fraction=0.25)


@pytest.fixture
def folder(tmp_path):
    """An ImageFolder of 12 small images in 3 classes."""
    return write_images(tmp_path / "images", count=12, classes=3, sides=(10, 10))


# --- what a pack leaves ---


def test_the_manifest_tells_what_the_beton_holds(tiny_workspace, tiny_folder):
    manifest = json.loads((tiny_workspace / "train.json").read_text())
    beton = open_beton(tiny_workspace / "train.beton")
    assert manifest.pop("seal").startswith("kdcache-seal:")
    assert manifest == beton.manifest.to_json()
    made_from = manifest.pop("made_from")
    fingerprint = manifest.pop("fingerprint")
    for name in ("tables_digest", "digests_digest", "names_digest"):
        assert re.fullmatch("[0-9a-f]{64}", manifest.pop(name))
    assert len(manifest.pop("mean")) == len(manifest.pop("std")) == 3
    assert manifest == {
        "format_version": 2,
        "split": "train",
        "samples": 72,
        "classes": 4,
        "class_names": ["class_0", "class_1", "class_2", "class_3"],
        "image_size": 32,
        "policy": "pad-crop(4, flip=True)",
        "write_mode": "raw",
        "beton_bytes": (tiny_workspace / "train.beton").stat().st_size,
        "skipped": [],
    }
    assert made_from.pop("content")
    assert made_from == {
        "kind": "folder",
        "path": str(tiny_folder),
        "label_key": None,
        "on_bad_image": "stop",
        "val_fraction": 0.25,
        "seed": 0,
        "write_mode": "auto",
        "max_resolution": None,
        "max_image_pixels": None,
        "classes": None,
        "compact_labels": None,
    }
    assert int(fingerprint, 16) > 0
    assert len(fingerprint) == 64
    packed = [name for name in names(tiny_workspace) if name.startswith(("train", "val"))]
    assert packed == TRAIN_FILES + VAL_FILES


def test_sample_ids_are_the_places_in_the_training_set(tiny_workspace):
    for split, count in (("train", 72), ("val", 24)):
        beton = open_beton(tiny_workspace / f"{split}.beton")
        assert beton.sample_ids.tolist() == list(range(count))
        assert np.bincount(beton.labels).tolist() == [count // 4] * 4


def test_the_result_tells_of_both_splits(finished):
    _, workspace, result = finished
    manifest = BetonManifest.load(workspace / "train.beton")
    assert result == {
        "fingerprint": manifest.fingerprint,
        "skipped": 0,
        "train": {"samples": 9, "classes": 3, "path": str(workspace / "train.beton")},
        "val": {"samples": 3, "classes": 3, "path": str(workspace / "val.beton")},
    }


def test_mean_and_deviation_are_of_the_training_pixels(tmp_path):
    folder = tmp_path / "images"
    write_images(folder / "train", count=20, classes=2, sides=(5, 30))
    # Evaluation images that would change everything, were they asked.
    write_grey(folder / "val" / "class_0" / "a.png", 255, size=(64, 64))
    packed(folder, tmp_path / "w", val_fraction=None)
    train, val = (
        BetonManifest.load(tmp_path / "w" / f"{split}.beton") for split in ("train", "val")
    )
    pixels = pixel_rows(sorted((folder / "train").rglob("*.png")))
    # Six digits are kept.
    np.testing.assert_allclose(train.mean, pixels.mean(axis=0), rtol=0, atol=1e-6)
    np.testing.assert_allclose(train.std, pixels.std(axis=0), rtol=0, atol=1e-6)
    assert (val.mean, val.std) == (train.mean, train.std)


def test_evaluation_sees_what_training_sees(tmp_path):
    folder = tmp_path / "images"
    write_grey(folder / "train" / "a" / "0.png", 9, size=(20, 20))
    write_grey(folder / "test" / "a" / "0.png", 9, size=(90, 70))
    packed(folder, tmp_path / "w", val_fraction=None)
    manifest = BetonManifest.load(tmp_path / "w" / "val.beton")
    assert (manifest.split, manifest.samples) == ("val", 1)
    assert (manifest.image_size, manifest.write_mode) == (20, "raw")
    assert manifest.policy == "pad-crop(4, flip=True)"


def test_images_of_one_colour_have_a_deviation_above_zero(tmp_path):
    write_grey(tmp_path / "images" / "a" / "0.png", 255)
    packed(tmp_path / "images", tmp_path / "w")
    manifest = BetonManifest.load(tmp_path / "w" / "train.beton")
    assert manifest.mean == [1, 1, 1]
    assert min(manifest.std) > 0


@pytest.mark.parametrize(
    ("sizes", "write_mode", "image_size", "policy"),
    [
        ([(64, 64), (64, 64)], "raw", 64, "pad-crop(4, flip=True)"),
        ([(9, 9), (8, 8)], "raw", 32, "pad-crop(4, flip=True)"),
        ([(8, 9), (8, 9)], "raw", 32, "pad-crop(4, flip=True)"),
        ([(65, 3), (3, 3)], "jpg", 224, "rrc"),
        ([(3, 65), (3, 3)], "jpg", 224, "rrc"),
    ],
    ids=str,
)
def test_the_images_decide_how_they_are_kept_and_seen(
    tmp_path, sizes, write_mode, image_size, policy
):
    for number, size in enumerate(sizes):
        write_grey(tmp_path / "images" / "a" / f"{number}.png", 9, size=size)
    packed(tmp_path / "images", tmp_path / "w")
    manifest = BetonManifest.load(tmp_path / "w" / "train.beton")
    found = (manifest.write_mode, manifest.image_size, manifest.policy)
    assert found == (write_mode, image_size, policy)


@pytest.mark.parametrize("write_mode", ["raw", "jpg"])
def test_options_of_storage_are_obeyed(photo_folder, tmp_path, write_mode):
    packed(photo_folder, tmp_path, write_mode=write_mode, max_resolution=70)
    beton = open_beton(tmp_path / "train.beton")
    assert (beton.sizes.max(axis=1) == 70).all()
    assert (beton.lengths == 3 * beton.sizes.prod(axis=1)).all() == (write_mode == "raw")


def test_a_source_may_say_its_own_policy(tmp_path):
    result = pack(PackOptions("digits", workspace=tmp_path)).to_json()
    manifest = BetonManifest.load(tmp_path / "train.beton")
    assert (manifest.policy, manifest.image_size) == ("pad-crop(1, flip=False)", 8)
    assert result["train"]["samples"] + result["val"]["samples"] == 1797
    # A fifth of each class, rounded.
    counts = np.bincount(open_beton(tmp_path / "val.beton").labels)
    assert counts.tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]


# --- the same again ---


def test_the_same_images_give_the_same_bytes_with_any_number_of_workers(tiny_folder, tmp_path):
    results = [
        packed(tiny_folder, tmp_path / str(workers), num_workers=workers) for workers in (1, 2)
    ]
    assert results[0]["fingerprint"] == results[1]["fingerprint"]
    for name in TRAIN_FILES:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


def test_a_jpeg_pack_gives_the_same_bytes_again(photo_folder, photo_beton, tmp_path):
    packed(photo_folder, tmp_path)
    for name in TRAIN_FILES:
        assert (tmp_path / name).read_bytes() == (photo_beton.parent / name).read_bytes(), name


def test_one_pixel_changes_the_fingerprint(folder, tmp_path):
    before = packed(folder, tmp_path / "before")["fingerprint"]
    path = folder / "class_1" / "0004.png"
    with Image.open(path) as image:
        changed = image.copy()
    red, green, blue = changed.getpixel((9, 9))
    changed.putpixel((9, 9), (red, green, blue ^ 1))
    changed.save(path)
    assert packed(folder, tmp_path / "after")["fingerprint"] != before
    digests = [np.load(tmp_path / name / "train.digests.npy") for name in ("before", "after")]
    different = np.flatnonzero((digests[0] != digests[1]).any(axis=(1, 2)))
    # Class by class, in the order of names: the second image of the second class.
    assert different.tolist() == [5]


def test_one_label_changes_the_fingerprint(folder, tmp_path):
    images = [{"bytes": path.read_bytes(), "path": ""} for path in sorted(folder.rglob("*.png"))]
    fingerprints = set()
    for label in (0, 1):
        labels = [0, 1] * 5 + [label, 1]
        pq.write_table(pa.table({"image": images, "label": labels}), tmp_path / "a.parquet")
        fingerprints.add(packed(tmp_path / "a.parquet", tmp_path / str(label))["fingerprint"])
    assert len(fingerprints) == 2


def test_the_same_images_have_one_fingerprint_wherever_they_come_from(
    tiny_folder, tiny_beton, tmp_path
):
    # Those that `tiny_beton` keeps for training, in its order.
    paths = np.array(sorted(tiny_folder.rglob("*.png")))
    labels = np.array([int(path.parent.name[-1]) for path in paths])
    train = np.concatenate(
        [
            np.sort(generator(0, "val-split", label).permutation(members)[6:])
            for label in range(4)
            for members in [np.flatnonzero(labels == label)]
        ]
    )
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in paths[train]]
    table = pa.table({"image": images, "label": labels[train]}).replace_schema_metadata(
        {"class_names": "class_0,class_1,class_2,class_3"}
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=5)
    result = packed(tmp_path / "a.parquet", tmp_path / "w")
    assert result["fingerprint"] == BetonManifest.load(tiny_beton).fingerprint


def test_a_second_run_finds_everything_done(finished, caplog):
    folder, workspace, result = finished
    before = stats(workspace)
    with caplog.at_level("INFO"):
        assert packed(folder, workspace, val_fraction=0.25, num_workers=2) == result
    assert "up to date" in caplog.text
    assert stats(workspace) == before


def test_a_seed_is_refused_where_nothing_is_drawn(tmp_path):
    source = write_images(tmp_path / "one", count=4, classes=2, sides=(8, 8))
    with pytest.raises(ConfigError, match=r"seed=3: nothing is drawn from .*one"):
        packed(source, tmp_path / "w", val_fraction=0, seed=3)
    for split in ("train", "val"):
        write_images(tmp_path / "both" / split, count=4, classes=2, sides=(8, 8))
    with pytest.raises(ConfigError, match=r"seed=3: nothing is drawn from .*both"):
        packed(tmp_path / "both", tmp_path / "w", val_fraction=None, seed=3)
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("lost", ["train.json", "train.beton", "val.json", "val.beton"])
def test_a_second_run_makes_what_is_missing(again, finished, tmp_path, lost):
    (tmp_path / "w" / lost).unlink()
    assert again()["fingerprint"] == finished[2]["fingerprint"]
    assert names(tmp_path / "w") == TRAIN_FILES + VAL_FILES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_resolution": 9}, "max_resolution is 9, found None"),
        ({"write_mode": "jpg"}, "write_mode is 'jpg', found 'auto'"),
        ({"seed": 3}, "seed is 3, found 0"),
        ({"on_bad_image": "skip"}, "on_bad_image is 'skip', found 'stop'"),
        ({"val_fraction": 0.5, "seed": 3}, "val_fraction is 0.5, found 0.25; seed is 3, found 0"),
    ],
    ids=str,
)
def test_other_options_are_refused_and_named(finished, options, message):
    folder, workspace, _ = finished
    before = stats(workspace)
    with pytest.raises(CacheMismatchError, match=message):
        packed(folder, workspace, **({"val_fraction": 0.25} | options))
    assert stats(workspace) == before


def test_other_images_are_refused_until_they_may_replace(finished, again, folder, tmp_path):
    write_grey(folder / "class_0" / "new.png", 7)
    with pytest.raises(CacheMismatchError, match=r"train\.beton was packed from .*content is '"):
        packed(folder, tmp_path / "w")
    after = packed(folder, tmp_path / "w", overwrite=True)
    assert after["train"]["samples"] == 13
    assert after["fingerprint"] != finished[2]["fingerprint"]
    assert len(open_beton(tmp_path / "w" / "train.beton")) == 13
    # The evaluation split of before is not this data set's.
    assert names(tmp_path / "w") == TRAIN_FILES
    with pytest.raises(CacheMismatchError, match=r"path is '.*', found '"):
        again()


# --- the evaluation split ---


def test_one_split_without_a_share_is_asked_wrongly(folder, tmp_path):
    with pytest.raises(ConfigError, match=f"{folder} has one split, expected val_fraction"):
        packed(folder, tmp_path / "w", val_fraction=None)
    assert not (tmp_path / "w").exists()


def test_a_share_beside_an_evaluation_split_is_refused(tmp_path):
    write_grey(tmp_path / "images" / "train" / "a" / "0.png", 1)
    write_grey(tmp_path / "images" / "val" / "a" / "0.png", 2)
    with pytest.raises(ConfigError, match=r"val_fraction=0\.1: .*images has"):
        packed(tmp_path / "images", tmp_path / "w", val_fraction=0.1)


def test_no_share_leaves_no_evaluation_split(folder, tmp_path):
    assert packed(folder, tmp_path / "w", val_fraction=0)["val"] is None
    assert names(tmp_path / "w") == TRAIN_FILES
