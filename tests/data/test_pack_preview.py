"""A dry run, what is said about a source, and images that are stored twice."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import kdcache as kd
from kdcache.cli import main
from kdcache.data.beton_manifest import BetonManifest, pack_again
from kdcache.data.duplicates import describe_duplicates, shared
from kdcache.data.images import store_image
from kdcache.errors import ConfigError, DatasetError
from tests.data.source_files import write_parquet, write_pngs


@pytest.fixture
def layout(tmp_path):
    """Three numeric classes, of which one has no evaluation image, and files that are no images."""
    write_pngs(tmp_path / "src" / "train" / "1", 1, 2, 3)
    write_pngs(tmp_path / "src" / "train" / "2", 4)
    write_pngs(tmp_path / "src" / "train" / "10", 5, 6)
    write_pngs(tmp_path / "src" / "val" / "2", 7)
    (tmp_path / "src" / "train" / "1" / "notes.txt").write_text("no image")
    write_pngs(tmp_path / "src" / "extra" / "1", 8, 9)
    return tmp_path / "src"


def test_a_dry_run_tells_everything_and_writes_nothing(layout, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["pack", str(layout), "--dry-run"]) == 0
    shown = capsys.readouterr()
    for line in ("train                6", "val                  1", "2 10: train 2, val 0"):
        assert line in shown.out
    for words in ("not images: files 1", "in extra, which is no split: files 2", "notes.txt"):
        assert words in shown.out
    assert "sorted as numbers" in shown.err
    assert [path.name for path in tmp_path.iterdir()] == ["src"]
    assert main(["pack", str(layout), "--dry-run", "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["classes"]["0 1"] == {"train": 3, "val": 0}
    names = {one["why"]: one["names"] for one in found["left_out_files"]}
    assert names["in extra, which is no split"] == [
        str(layout / "extra" / "1" / f"{grey:03}.png") for grey in (8, 9)
    ]


def test_a_dry_run_needs_no_fraction_and_respects_one(layout):
    alone = kd.pack(str(layout / "train"), dry_run=True).preview
    assert alone.samples == {"train": 6}
    divided = kd.pack(str(layout / "train"), val_fraction=0.4, dry_run=True).preview
    assert divided.samples == {"train": 4, "val": 2}
    assert divided.class_sizes["train"] == (2, 1, 1)


def test_a_dry_run_has_no_betons(layout):
    result = kd.pack(str(layout), dry_run=True)
    assert result.val is None
    with pytest.raises(ConfigError, match="a dry run packs nothing"):
        _ = result.train


def test_a_subset_has_no_dry_run(tmp_path):
    with pytest.raises(ConfigError, match="dry_run=True: expected a SOURCE with it"):
        kd.pack(subset="s", dry_run=True, workspace=tmp_path)


# --- classes by number ---


def test_the_options_about_labels_are_kept_for_the_next_pack(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [(1, 3), (2, 9), (3, 3)])
    compact = kd.pack(str(path), workspace=tmp_path / "c", val_fraction=0, compact_labels=True)
    assert compact.train.labels.tolist() == [0, 1, 0]
    assert compact.train.manifest.class_names == ["3", "9"]
    again = pack_again(compact.train.path, compact.train.manifest)
    assert f"{path} --compact-labels --write-mode auto --val-fraction 0" in again
    meant = kd.pack(str(path), workspace=tmp_path / "n", val_fraction=0, classes=12)
    assert meant.train.manifest.classes == 12
    assert "--classes 12" in pack_again(meant.train.path, meant.train.manifest)
    assert BetonManifest.load(meant.train.path).made_from["compact_labels"] is None


@pytest.mark.parametrize(
    ("given_options", "message"),
    [
        ({"classes": 9}, "classes=9: expected a number above 9"),
        ({"classes": 0}, "classes=0: expected a number from 1"),
        ({"classes": 10**9}, "classes=1000000000: expected a number from 1 to 10000000"),
        ({"classes": 5, "compact_labels": True}, "are both given"),
    ],
    ids=str,
)
def test_a_number_of_classes_that_cannot_be_is_refused(tmp_path, given_options, message):
    path = write_parquet(tmp_path / "a.parquet", [(1, 3), (2, 9)])
    with pytest.raises(ConfigError, match=message):
        kd.pack(str(path), workspace=tmp_path / "w", val_fraction=0, **given_options)


def test_a_number_of_classes_must_be_that_of_the_names(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [(1, 1)], names=["ant", "bee"])
    with pytest.raises(ConfigError, match=r"classes=3: .*a\.parquet names 2 classes"):
        kd.pack(str(path), workspace=tmp_path / "w", val_fraction=0, classes=3)


def test_many_named_classes_of_which_few_have_images_are_packed(tmp_path):
    names = [f"landmark {number}" for number in range(203_095)]
    path = write_parquet(tmp_path / "a.parquet", [(1, 7), (2, 203_094)], names=names)
    preview = kd.pack(str(path), dry_run=True).preview
    assert len(preview.class_names) == 203_095
    assert "203,093 classes have no image in train: landmark 0, landmark 1," in preview.warnings[0]
    preview = kd.pack(str(path), dry_run=True, compact_labels=True).preview
    assert preview.class_names == ("landmark 7", "landmark 203094")


# --- the limit of pixels ---


def large_png(width, height):
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()


def test_an_image_with_too_many_pixels_names_the_option():
    content = large_png(400, 300)
    with pytest.raises(ValueError, match=r"400 x 300 pixels, .* --max-image-pixels to 120000"):
        store_image(content, write_mode="raw", max_resolution=8, max_image_pixels=119_999)
    image = store_image(content, write_mode="raw", max_resolution=8, max_image_pixels=120_000)
    assert (image.height, image.width) == (6, 8)


def test_the_limit_is_ours_and_pillows_stays_as_it_was(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    image = store_image(large_png(100, 100), write_mode="raw", max_resolution=None)
    assert image.width == 100
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_the_limit_is_an_option_of_the_command(tmp_path, capsys):
    write_pngs(tmp_path / "src" / "a", 1)
    (tmp_path / "src" / "a" / "big.png").write_bytes(large_png(300, 300))
    words = [
        "pack",
        str(tmp_path / "src"),
        "--val-fraction",
        "0",
        "--workspace",
        str(tmp_path / "w"),
    ]
    assert main([*words, "--max-image-pixels", "80000", "--quiet"]) == 1
    assert "raise --max-image-pixels to 90000" in capsys.readouterr().err
    assert main([*words, "--max-image-pixels", "90000", "--quiet"]) == 0


# --- duplicates ---


def test_images_in_both_splits_are_reported_by_name(tmp_path, caplog):
    write_pngs(tmp_path / "src" / "train" / "cat", 1, 2)
    write_pngs(tmp_path / "src" / "train" / "dog", 2, 3)
    write_pngs(tmp_path / "src" / "val" / "cat", 9)
    write_pngs(tmp_path / "src" / "val" / "dog", 3)
    (tmp_path / "src" / "train" / "cat" / "000.png").write_bytes(b"")  # shifts the sample ids
    kd.pack(str(tmp_path / "src"), workspace=tmp_path / "w", on_bad_image="skip")
    train, val = tmp_path / "src" / "train", tmp_path / "src" / "val"
    assert (
        f"1 of 2 images of val are in train too, so accuracies on val are too high: the first is "
        f"{val / 'dog' / '003.png'}, which equals {train / 'dog' / '003.png'}"
    ) in caplog.text
    assert (
        f"2 images of train have an equal image with another label, the first are "
        f"{train / 'cat' / '002.png'} and {train / 'dog' / '002.png'}"
    ) in caplog.text


def test_different_images_give_no_warning():
    digests = {"train": np.eye(16, dtype=np.uint8), "val": 2 * np.eye(16, dtype=np.uint8)}
    labels = {name: np.zeros(16, dtype=np.int64) for name in digests}
    assert list(describe_duplicates(digests, labels, lambda *_: "x")) == []


@given(
    st.lists(st.integers(0, 9), max_size=12), st.lists(st.integers(0, 9), min_size=1, max_size=12)
)
@settings(deadline=None)
def test_shared_digests_are_found_with_their_first_place(these, others):
    def digests(values):
        # Equal first halves, so that the second half decides.
        found = np.zeros((len(values), 16), dtype=np.uint8)
        found[:, 15] = values
        return found

    indices, originals = shared(digests(these), digests(others))
    expected = [(i, others.index(value)) for i, value in enumerate(these) if value in others]
    assert list(zip(indices.tolist(), originals.tolist(), strict=True)) == expected


def test_a_user_source_with_labels_beyond_its_names_is_refused(tmp_path, monkeypatch):
    code = (
        "import numpy as np\nfrom kdcache import Source\n"
        "class One:\n    labels = np.array([0, 3])\n"
        "def open(): return Source({'train': One()}, ['a', 'b'], {'content': ''})\n"
    )
    (tmp_path / "my_source.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match="has the label 3, expected labels from 0 and below 2"):
        kd.pack("my_source:open", workspace=tmp_path / "w", val_fraction=0)
