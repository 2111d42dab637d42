"""`kdcache select`: names, provenance, reuse, and what is refused."""

from __future__ import annotations

import hashlib
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdcache.data.beton_manifest import BetonManifest, names_path
from kdcache.data.digests import STORED
from kdcache.errors import (
    CacheCorruptError,
    CacheIncompleteError,
    CacheMismatchError,
    ConfigError,
    DatasetError,
)
from kdcache.options import PruningOptions, SelectOptions
from kdcache.seals import read_sealed_json
from kdcache.selection.pruning import select_ids
from kdcache.selection.select import select, subset_name
from kdcache.selection.subset import Subset
from tests.data.packed_names import names_of
from tests.store.editing import change_manifest, change_values

NUM_SAMPLES = 72


def run(workspace: Path, **options: Any) -> dict[str, Any]:
    return select(SelectOptions(workspace=workspace, **options)).to_json()


def store_of(workspace: Path) -> Path:
    return workspace / "stores" / "projection.zarr"


def state(path: Path) -> tuple[int, bytes]:
    """Change when a file is written again, even with the same content."""
    return path.stat().st_ino, path.read_bytes()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "medium-0.7"),
        ({"method": "hard", "keep": 0.5}, "hard-0.5"),
        ({"keep": 1}, "medium-1"),
        ({"keep": 0.125}, "medium-0.125"),
        ({"score": "el2n"}, "medium-0.7-el2n"),
        ({"balance": "none"}, "medium-0.7-none"),
        ({"method": "random", "seed": 3}, "random-0.7-s3"),
        (
            {"method": "beta", "keep": 0.3, "score": "margin", "balance": "class", "seed": 12},
            "beta-0.3-margin-class-s12",
        ),
        ({"method": "window", "keep": 0.2, "start": 0.35}, "window-0.2-start0.35"),
        ({"method": "window", "keep": 0.2, "start": 0.0}, "window-0.2-start0"),
        ({"method": "stratified", "keep": 0.1, "cut": 0.3}, "stratified-0.1-cut0.3"),
        (
            {"method": "beta", "peak": 0.25, "concentration": 6, "seed": 2},
            "beta-0.7-peak0.25-concentration6-s2",
        ),
        ({"scores": Path("/a/forgetting.csv"), "min_per_class": 5}, "medium-0.7-forgetting-min5"),
        ({"average_with": ("r34", "r18"), "score": "el2n"}, "medium-0.7-el2n-with-r34-r18"),
        (
            {"average_with": ("a/b/r50.safetensors", "timm:r18")},
            "medium-0.7-with-r50-timm-r18",
        ),
        (
            {"method": "random", "score": "el2n", "export": Path("s.csv")},
            "random-0.7-el2n",
        ),
        ({"parity": "mdslr", "keep": 0.4}, "medium-0.4-mdslr"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_name_of_a_subset_has_the_options_that_are_not_defaults(options, name):
    assert subset_name(SelectOptions(**options)) == name


def test_a_selection_is_written_under_its_name_and_remembered(workspace):
    result = run(workspace, method="hard", keep=0.4)
    path = workspace / "subsets" / "hard-0.4.npz"
    assert result == {
        "method": "hard",
        "keep": 0.4,
        "kept": 29,
        "of": NUM_SAMPLES,
        "path": str(path.resolve()),
    }
    assert len(Subset.load(path)) == 29
    remembered = read_sealed_json(workspace / "workspace.json", remedy="")
    assert remembered == {"store": "stores/projection.zarr", "subset": "subsets/hard-0.4.npz"}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "easy", "score": "margin", "balance": "none", "keep": 0.2},
        {"method": "random", "seed": 5, "balance": "class", "keep": 0.9},
        {"method": "window", "start": 0.1, "keep": 0.3},
        {"method": "stratified", "cut": 0.2, "keep": 0.5},
        {"method": "stratified", "keep": 0.5, "balance": "none", "min_per_class": 4},
        {"method": "beta", "peak": 0.9, "concentration": 30.0, "keep": 0.3},
        {"method": "beta", "concentration": 0.0, "keep": 0.3},
    ],
    ids=lambda options: " ".join(map(str, options.values())) or "defaults",
)
def test_the_ids_are_chosen_from_the_scores_in_the_store(workspace, tiny_store, options):
    chosen = {name: value for name, value in options.items() if name != "score"}
    scores = tiny_store.scores[options.get("score", "cross_entropy")]
    expected = select_ids(scores, tiny_store.labels, PruningOptions(**chosen), num_classes=4)
    found = Subset.load(run(workspace, **options)["path"])
    assert found.sample_ids.tolist() == expected.tolist()


def test_class_adaptive_reads_the_teachers_errors_from_the_store(workspace, tiny_store):
    found = Subset.load(run(workspace, method="class-adaptive", keep=0.3)["path"])
    wrong = np.bincount(tiny_store.labels[~tiny_store.stats["correct"]], minlength=4)
    counts = np.bincount(tiny_store.labels[found.sample_ids], minlength=4)
    # Classes of one size: numbers in proportion to the errors, within rounding.
    assert (abs(counts - 22 * wrong / wrong.sum()) < 1).all()
    assert len(set(wrong.tolist())) > 1


def test_a_subset_records_its_provenance(workspace, tiny_store):
    found = Subset.load(run(workspace, method="random", seed=2)["path"])
    about = tiny_store.manifest
    assert found.provenance == {
        "method": "random",
        "keep": 0.7,
        "score": "cross_entropy",
        "balance": "proportional",
        "seed": 2,
        "of": NUM_SAMPLES,
        "data_fingerprint": about.data_fingerprint,
        "teacher": "projection",
        "teacher_digest": about.teacher_digest,
    }


def test_a_second_selection_is_up_to_date(workspace):
    first = run(workspace)
    before = state(Path(first["path"]))
    run(workspace, method="easy")
    assert run(workspace) == first
    assert state(Path(first["path"])) == before
    # The last one that was asked for, though it was there already.
    remembered = read_sealed_json(workspace / "workspace.json", remedy="")
    assert remembered["subset"] == "subsets/medium-0.7.npz"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"method": "easy"}, "method is 'easy', found 'medium'"),
        ({"keep": 0.5}, "keep is 0.5, found 0.7"),
        ({"score": "el2n"}, "score is 'el2n', found 'cross_entropy'"),
        ({"balance": "class"}, "balance is 'class', found 'proportional'"),
        ({"min_per_class": 3}, "min_per_class is 3, found None"),
        ({"parity": "mdslr"}, "parity is 'mdslr', found None"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, dict) else "",
)
def test_a_file_made_with_other_options_is_replaced_only_with_overwrite(
    workspace, tmp_path, options, named
):
    out = tmp_path / "chosen.npz"
    run(workspace, out=out)
    before = state(out)
    with pytest.raises(CacheMismatchError, match=rf"other settings: {named}\. .*overwrite"):
        run(workspace, out=out, **options)
    assert state(out) == before
    run(workspace, out=out, overwrite=True, **options)
    (name, value) = next(iter(options.items()))
    assert Subset.load(out).provenance[name] == value


def test_a_file_made_with_another_seed_is_refused(workspace, tmp_path):
    out = tmp_path / "chosen.npz"
    run(workspace, out=out, method="random")
    with pytest.raises(CacheMismatchError, match="other settings: seed is 1, found 0"):
        run(workspace, out=out, method="random", seed=1)


def test_a_file_made_with_an_option_is_refused_without_the_option(workspace, tmp_path):
    out = tmp_path / "chosen.npz"
    run(workspace, out=out, method="stratified", cut=0.2)
    with pytest.raises(CacheMismatchError, match=r"cut is None, found 0\.2"):
        run(workspace, out=out, method="stratified")


def test_a_subset_of_another_teacher_is_refused(workspace):
    run(workspace)
    change_manifest(store_of(workspace), teacher_digest="e" * 64)
    with pytest.raises(CacheMismatchError, match=f"teacher_digest is '{'e' * 64}', found '"):
        run(workspace)


def test_another_file_is_replaced_only_with_overwrite(workspace, tmp_path):
    out = tmp_path / "notes.npz"
    out.write_text("not a subset")
    with pytest.raises(CacheCorruptError, match=r"notes\.npz is not a subset file"):
        run(workspace, out=out)
    assert out.read_text() == "not a subset"
    run(workspace, out=out, overwrite=True)
    assert len(Subset.load(out)) == 50


def test_a_file_outside_the_workspace_is_remembered_too(workspace, tmp_path):
    out = tmp_path / "folder" / "chosen.v1.npz"
    assert run(workspace, out=out)["path"] == str(out.resolve())
    remembered = read_sealed_json(workspace / "workspace.json", remedy="")
    assert remembered["subset"] == str(out.resolve())


def test_all_samples_can_be_kept(workspace):
    found = Subset.load(run(workspace, keep=1)["path"])
    assert found.sample_ids.tolist() == list(range(NUM_SAMPLES))


def test_a_store_is_found_by_the_name_of_its_teacher(workspace):
    store_of(workspace).rename(workspace / "stores" / "other.zarr")
    assert run(workspace, teacher="other")["kept"] == 50


def test_the_error_of_a_missing_store_names_the_command_that_builds_it(workspace, tmp_path):
    with pytest.raises(ConfigError, match=r"no store was built yet.*kdcache build-logits"):
        run(tmp_path / "empty")
    with pytest.raises(ConfigError, match=r"resnet50\.zarr does not exist.*teacher resnet50"):
        run(workspace, teacher="resnet50")


def test_an_unfinished_store_is_refused(workspace):
    (store_of(workspace) / "views/3/complete").unlink()
    with pytest.raises(CacheIncompleteError, match="3 of 4 views"):
        run(workspace)
    assert not (workspace / "subsets").exists()


def test_the_error_of_a_nan_score_names_its_sample_and_no_file_is_written(workspace):
    is_41 = np.arange(NUM_SAMPLES) == 41
    change_values(
        store_of(workspace), "scores/el2n", lambda scores: np.where(is_41, np.nan, scores)
    )
    with pytest.raises(ConfigError, match=r"sample 41 is nan \(1 such samples\)"):
        run(workspace, score="el2n")
    assert not (workspace / "subsets").exists()
    assert run(workspace)["kept"] == 50


def test_the_log_says_how_many_samples_each_class_keeps(workspace, tiny_store, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("kdcache"), "propagate", True)
    with caplog.at_level(logging.INFO, logger="kdcache"):
        ids = Subset.load(run(workspace, method="hard", keep=0.5)["path"]).sample_ids
    kept = np.bincount(tiny_store.labels[ids])
    sizes = np.bincount(tiny_store.labels)
    lines = [" ".join(record.getMessage().split()) for record in caplog.records]
    for label in range(4):
        assert f"class_{label} {kept[label]} of {sizes[label]}" in lines


def test_a_warning_names_a_class_that_keeps_no_sample(workspace, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("kdcache"), "propagate", True)
    with caplog.at_level(logging.WARNING, logger="kdcache"):
        run(workspace, keep=0.02, balance="none")
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("3 classes keep no sample (the first is class_")
    assert "min_per_class=1" in warning


def test_with_a_minimum_every_class_keeps_samples(workspace, tiny_store, caplog):
    with caplog.at_level(logging.WARNING, logger="kdcache"):
        path = run(workspace, keep=0.06, balance="none", min_per_class=1)["path"]
    kept = np.bincount(tiny_store.labels[Subset.load(path).sample_ids], minlength=4)
    assert (kept.min(), kept.sum(), caplog.records) == (1, 4, [])


# Scores from elsewhere


def test_scores_of_a_file_replace_those_of_the_store(workspace, tmp_path):
    scores = np.random.default_rng(0).random(NUM_SAMPLES)
    np.save(tmp_path / "mine.npy", scores)
    result = run(workspace, method="hard", keep=0.5, balance="none", scores=tmp_path / "mine.npy")
    found = Subset.load(result["path"])
    assert found.sample_ids.tolist() == sorted(np.argsort(scores)[36:].tolist())
    assert result["path"].endswith("subsets/hard-0.5-mine-none.npz")
    assert (found.provenance["score"], found.provenance["scores"]) == (None, "mine.npy")
    np.save(tmp_path / "mine.npy", scores[::-1])
    with pytest.raises(CacheMismatchError, match="scores_digest is '"):
        run(workspace, method="hard", keep=0.5, balance="none", scores=tmp_path / "mine.npy")


def test_the_error_of_a_missing_score_file_names_it(workspace, tmp_path):
    with pytest.raises(ConfigError, match=r"scores=.*gone\.csv: expected a file that exists"):
        run(workspace, scores=tmp_path / "gone.csv")


def test_the_error_of_nan_in_a_file_names_its_samples(workspace, tmp_path):
    scores = np.random.default_rng(0).random(NUM_SAMPLES)
    scores[[7, 70]] = np.nan
    np.save(tmp_path / "s.npy", scores)
    with pytest.raises(ConfigError, match=r"score of sample 7 is nan \(2 such .*samples 7, 70$"):
        run(workspace, scores=tmp_path / "s.npy")


def test_scores_are_found_by_the_names_of_the_packed_files(
    workspace, tiny_workspace, tiny_folder, tmp_path
):
    for file in ("train.json", "train.names.parquet"):
        shutil.copy(tiny_workspace / file, workspace)
    (workspace / "train.beton").touch()
    names = names_of(workspace / "train.beton")
    assert len(names) == NUM_SAMPLES
    # The digest of a sample is that of its file's pixels: names and ids belong together.
    digests = np.load(tiny_workspace / "train.digests.npy")
    for sample_id in (0, 20, 71):
        with Image.open(names[sample_id]) as image:
            pixels = image.convert("RGB").tobytes()
        digest = hashlib.blake2b(pixels, digest_size=16).digest()
        assert digests[sample_id, STORED].tobytes() == digest
    scores = np.random.default_rng(1).random(NUM_SAMPLES)
    rows = [
        f"{Path(name).relative_to(tiny_folder)},{score}"
        for name, score in zip(names, scores, strict=True)
    ]
    (tmp_path / "s.csv").write_text("file,score\n" + "\n".join(rows[::-1]) + "\n")
    ids = Subset.load(run(workspace, method="easy", scores=tmp_path / "s.csv")["path"]).sample_ids
    (tmp_path / "n.npy").parent.mkdir(exist_ok=True)
    np.save(tmp_path / "n.npy", scores)
    by_id = Subset.load(run(workspace, method="easy", scores=tmp_path / "n.npy")["path"])
    assert ids.tolist() == by_id.sample_ids.tolist()


def test_file_names_are_refused_if_they_are_lost_damaged_or_of_other_data(
    workspace, tiny_workspace, tmp_path
):
    (tmp_path / "s.csv").write_text("file,score\na,1\n")
    with pytest.raises(DatasetError, match=r"train\.beton is missing"):
        run(workspace, scores=tmp_path / "s.csv")
    beton = workspace / "train.beton"
    beton.touch()
    shutil.copy(tiny_workspace / "train.json", workspace)
    with pytest.raises(DatasetError, match=r"train\.names\.parquet is missing, .*kdcache pack"):
        run(workspace, scores=tmp_path / "s.csv")
    names_path(beton).write_bytes(b"PAR1")
    with pytest.raises(DatasetError, match=r"train\.names\.parquet differs from its digest"):
        run(workspace, scores=tmp_path / "s.csv")
    replace(BetonManifest.load(beton), fingerprint="f" * 64).save(beton)
    with pytest.raises(CacheMismatchError, match=f"fingerprint is {'f' * 12}"):
        run(workspace, scores=tmp_path / "s.csv")


@pytest.fixture
def two_stores(workspace: Path) -> Path:
    """The workspace with a second teacher's store, whose cross-entropies are squared."""
    other = workspace / "stores" / "other.zarr"
    shutil.copytree(store_of(workspace), other)
    change_manifest(other, teacher="other", teacher_digest="e" * 64)
    change_values(other, "scores/cross_entropy", lambda scores: scores**2)
    return workspace


def test_scores_are_averaged_over_teachers(two_stores, tiny_store, tmp_path):
    options = {"average_with": ("other",), "balance": "none", "export": tmp_path / "mean.npy"}
    found = Subset.load(run(two_stores, method="hard", keep=0.5, **options)["path"])
    scores = tiny_store.scores["cross_entropy"].astype(np.float64)
    mean = ((scores + (scores**2).astype(np.float32)) / 2).astype(np.float32)
    assert np.array_equal(np.load(tmp_path / "mean.npy"), mean)
    assert found.sample_ids.tolist() == sorted(np.argsort(mean, kind="stable")[36:].tolist())
    assert found.provenance["averaged_with"] == ["e" * 64]


def test_averages_over_other_data_or_the_same_teacher_are_refused(two_stores):
    with pytest.raises(ConfigError, match="average_with=projection: expected other teachers"):
        run(two_stores, average_with=("projection",))
    with pytest.raises(ConfigError, match=r"gone\.zarr does not exist"):
        run(two_stores, average_with=("gone",))
    change_manifest(two_stores / "stores/other.zarr", data_fingerprint="f" * 64)
    with pytest.raises(CacheMismatchError, match=f"other.zarr holds scores of other .*{'f' * 12}"):
        run(two_stores, average_with=("other",))
