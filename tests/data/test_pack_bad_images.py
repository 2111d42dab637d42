"""Images that cannot be packed stop the pack, or are left out and listed."""

from __future__ import annotations

import io
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kdcache.data.beton import open_beton
from kdcache.data.beton_manifest import BetonManifest
from kdcache.errors import CacheMismatchError, DatasetError
from tests.conftest import write_images
from tests.data.packed_names import names_of
from tests.data.test_pack import TRAIN_FILES, names, packed, stats, write_grey

# --- what cannot be packed ---


def test_a_truncated_image_stops_the_pack_and_leaves_the_one_before(tmp_path):
    folder = write_images(tmp_path / "images", count=40, classes=2, sides=(70, 90))
    before = packed(folder, tmp_path / "w", val_fraction=0.25)
    files = stats(tmp_path / "w")
    path = folder / "class_1" / "0037.jpg"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DatasetError, match=f"{path} cannot be decoded: .*truncated"):
        packed(folder, tmp_path / "w", overwrite=True, num_workers=2)
    assert stats(tmp_path / "w") == files
    beton = open_beton(tmp_path / "w" / "train.beton")
    assert beton.manifest.fingerprint == before["fingerprint"]
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("write_mode", ["auto", "raw"])
def test_a_first_image_that_is_none_is_named(tmp_path, write_mode):
    write_grey(tmp_path / "images" / "a" / "1.png", 1)
    (tmp_path / "images" / "a" / "0.jpg").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"a/0\.jpg cannot be decoded"):
        packed(tmp_path / "images", tmp_path / "w", write_mode=write_mode)
    assert names(tmp_path / "w") == []


def test_a_damaged_row_of_parquet_is_named(tmp_path):
    write_grey(tmp_path / "a.png", 5)
    images = [{"bytes": (tmp_path / "a.png").read_bytes(), "path": ""}] * 3
    images.append({"bytes": b"no image", "path": ""})
    pq.write_table(pa.table({"image": images, "label": [0] * 4}), tmp_path / "a.parquet")
    with pytest.raises(DatasetError, match=r"a\.parquet, row 3 cannot be decoded"):
        packed(tmp_path / "a.parquet", tmp_path / "w")


@pytest.fixture(scope="module")
def with_bad_images(tmp_path_factory):
    """An ImageFolder of 40 photos of which 5 cannot be decoded, by what is wrong with each."""
    folder = write_images(tmp_path_factory.mktemp("bad"), count=40, classes=2, sides=(70, 90))
    truncated = (folder / "class_0" / "0002.jpg").read_bytes()[:-60]
    scaled = io.BytesIO()
    Image.fromarray(np.full((9, 9), 7000, dtype=np.float32)).save(scaled, "TIFF")
    bad = {
        "class_0/0000.jpg": (b"", "the file is empty"),
        "class_0/0002.jpg": (truncated, "image file is truncated"),
        "class_0/0030.jpg": (b"<html>404</html>", "it is a web page or other text"),
        "class_1/0013.jpg": (scaled.getvalue(), "its floating-point values go from 7000 to 7000"),
        "class_1/0039.jpg": (bytes(90), "it contains only zeros"),
    }
    for name, (content, _) in bad.items():
        (folder / name).write_bytes(content)
    return folder, {str(folder / name): reason for name, (_, reason) in bad.items()}


def test_images_that_cannot_be_decoded_are_skipped_and_listed(with_bad_images, tmp_path, caplog):
    folder, bad = with_bad_images
    result = packed(folder, tmp_path / "w", on_bad_image="skip")
    assert (result["skipped"], result["train"]["samples"]) == (5, 35)
    assert "train: 5 images cannot be decoded and are skipped, the first is" in caplog.text
    beton = open_beton(tmp_path / "w" / "train.beton")
    listed = beton.manifest.skipped
    assert [image["name"] for image in listed] == list(bad)
    for image in listed:
        assert image["reason"].startswith(bad[image["name"]])
    files = sorted(str(path) for path in folder.rglob("*.jpg"))
    assert [files[image["position"]] for image in listed] == [image["name"] for image in listed]
    # What is left is a pack like any other, of the images that are left.
    good = [path for path in files if path not in bad]
    assert beton.sample_ids.tolist() == list(range(35))
    assert beton.labels.tolist() == [int(path.split("class_")[1][0]) for path in good]
    for path in bad:
        assert path not in good
    left = tmp_path / "left"
    shutil.copytree(folder, left)
    for path in bad:
        (left / Path(path).relative_to(folder)).unlink()
    assert packed(left, tmp_path / "again")["fingerprint"] == result["fingerprint"]
    manifest = BetonManifest.load(tmp_path / "again" / "train.beton")
    assert (manifest.mean, manifest.std) == (beton.manifest.mean, beton.manifest.std)
    assert names_of(beton.path) == good


def test_skipping_gives_the_same_bytes_with_any_number_of_workers(with_bad_images, tmp_path):
    folder, _ = with_bad_images
    for workers in (1, 2):
        packed(folder, tmp_path / str(workers), on_bad_image="skip", num_workers=workers)
    for name in TRAIN_FILES:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


def test_without_skipping_the_first_bad_image_in_order_stops_the_pack(with_bad_images, tmp_path):
    folder, bad = with_bad_images
    with pytest.raises(
        DatasetError,
        match=f"{next(iter(bad))} cannot be decoded: the file is .*on_bad_image skip",
    ):
        packed(folder, tmp_path / "w", num_workers=2)
    assert names(tmp_path / "w") == []


def test_a_source_without_a_good_image_is_refused_even_when_skipping(tmp_path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    for number in range(3):
        (tmp_path / "images" / "a" / f"{number}.jpg").write_bytes(b"<html>")
    with pytest.raises(DatasetError, match="none of the 3 images of train can be decoded"):
        packed(tmp_path / "images", tmp_path / "w", on_bad_image="skip")
    assert names(tmp_path / "w") == []


def test_a_class_that_loses_all_its_images_is_told(tmp_path, caplog):
    write_grey(tmp_path / "images" / "a" / "0.png", 1)
    (tmp_path / "images" / "b").mkdir()
    (tmp_path / "images" / "b" / "0.png").write_bytes(b"")
    packed(tmp_path / "images", tmp_path / "w", on_bad_image="skip")
    assert "1 class has no image left, the first is b" in caplog.text
    assert BetonManifest.load(tmp_path / "w" / "train.beton").class_names == ["a", "b"]


def test_a_file_that_cannot_be_read_is_no_bad_image(tmp_path):
    # A disk or a network that fails for a while must not thin out a data set.
    for number in range(3):
        write_grey(tmp_path / "images" / "a" / f"{number}.png", 1)
    (tmp_path / "images" / "a" / "1.png").unlink()
    (tmp_path / "images" / "a" / "1.png").symlink_to("/proc/self/mem")
    with pytest.raises(DatasetError, match=r"a/1\.png cannot be read: .*Input/output error"):
        packed(tmp_path / "images", tmp_path / "w", on_bad_image="skip")


def test_an_evaluation_split_from_elsewhere_is_packed_and_found_again(tmp_path):
    for value, split in enumerate(("a", "b")):
        write_grey(tmp_path / split / "cat" / "0.png", value)
    options = {"val_source": str(tmp_path / "b"), "val_fraction": None}
    result = packed(tmp_path / "a", tmp_path / "w", **options)
    assert (result["train"]["samples"], result["val"]["samples"]) == (1, 1)
    assert packed(tmp_path / "a", tmp_path / "w", **options) == result
    assert names_of(tmp_path / "w" / "train.beton") == [str(tmp_path / "a" / "cat" / "0.png")]
    with pytest.raises(CacheMismatchError, match="val_source is None, found '"):
        packed(tmp_path / "a", tmp_path / "w")


def test_more_evaluation_splits_than_one_are_told(tmp_path, caplog):
    for split in ("train", "val", "test"):
        write_grey(tmp_path / "images" / split / "a" / "0.png", 1)
    packed(tmp_path / "images", tmp_path / "w", val_fraction=None)
    assert "1 file is left out (in test, a further evaluation split)" in caplog.text
    assert "1 of 1 images of val are in train too" in caplog.text


def test_an_image_too_large_for_the_format_tells_the_remedy(tmp_path):
    write_grey(tmp_path / "images" / "a" / "0.png", 5, size=(1700, 1700))
    with pytest.raises(DatasetError, match=r"takes 8,670,000 bytes, .*max_resolution"):
        packed(tmp_path / "images", tmp_path / "w", write_mode="raw")
    assert names(tmp_path / "w") == []


def test_a_worker_that_is_killed_stops_the_pack(tmp_path):
    for number in range(200):  # few of them are looked at before the workers start
        write_grey(tmp_path / "images" / "a" / f"{number:03}.png", 1)
    # Its reader waits for a writer: this worker cannot end by itself.
    (tmp_path / "images" / "a" / "001.png").unlink()
    os.mkfifo(tmp_path / "images" / "a" / "001.png")

    def kill():
        deadline = time.monotonic() + 60
        while not (children := multiprocessing.active_children()) and time.monotonic() < deadline:
            time.sleep(0.01)
        for child in children:
            child.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(DatasetError, match="pack worker was killed or could not start"):
        packed(tmp_path / "images", tmp_path / "w", num_workers=2)
    killer.join()
    assert names(tmp_path / "w") == []


def test_a_script_that_calls_pack_at_import_is_told_so(tmp_path):
    for number in range(8):
        write_grey(tmp_path / "images" / "a" / f"{number}.png", 1)
    script = tmp_path / "script.py"
    script.write_text(
        "import kdcache as kd\nkd.pack('images', workspace='w', val_fraction=0, num_workers=2)\n"
    )
    found = subprocess.run(
        [sys.executable, script], check=False, cwd=tmp_path, capture_output=True, text=True
    )
    assert found.returncode == 1
    *_, line = (text for text in found.stderr.splitlines() if "DatasetError: " in text)
    assert 'call pack below if __name__ == "__main__":' in line


def test_workers_end_with_a_packer_that_is_killed(tmp_path):
    for number in range(200):
        write_grey(tmp_path / "images" / "a" / f"{number:03}.png", 1)
    (tmp_path / "images" / "a" / "150.png").unlink()
    os.mkfifo(tmp_path / "images" / "a" / "150.png")  # so that it does not end by itself
    command = ["pack", str(tmp_path / "images"), "--workspace", str(tmp_path / "w")]
    command += ["--val-fraction", "0"]
    packer = subprocess.Popen(
        [sys.executable, "-m", "kdcache", *command, "--num-workers", "2", "--quiet"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while len(workers := psutil.Process(packer.pid).children()) < 3:  # and a resource tracker
        assert time.monotonic() < deadline
        assert packer.poll() is None
        time.sleep(0.05)
    time.sleep(1)  # they have begun
    packer.kill()
    packer.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []


def test_leftovers_of_a_dead_process_are_swept_and_those_of_a_live_one_kept(tmp_path):
    folder = write_images(tmp_path / "images", count=12, classes=3, sides=(10, 10))
    workspace = tmp_path / "w"
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    node = platform.node().replace(".", "-")
    left = workspace / f".pack.abc.{int(dead.stdout)}@{node}.partial"
    kept = workspace / f".pack.abc.{os.getppid()}@{node}.partial"
    for path in (left, kept):
        path.mkdir(parents=True)
        (path / "train.beton").write_bytes(b"half")
    packed(folder, workspace)
    assert names(workspace) == [kept.name, *TRAIN_FILES]
    shutil.rmtree(kept)
