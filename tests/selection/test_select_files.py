"""What `kdcache select` exports and compares, and options that contradict each other."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from kdcache.data.repack import subset_beton
from kdcache.errors import (
    CacheMismatchError,
    ConfigError,
    DatasetError,
)
from kdcache.options import SelectOptions
from kdcache.selection.subset import Subset
from kdcache.workspace import Workspace
from tests.data.packed_names import names_of
from tests.selection.test_select import NUM_SAMPLES, run, state


def test_exported_scores_select_the_same_samples_again(workspace, tmp_path):
    first = run(workspace, keep=0.4, export=tmp_path / "s.parquet")
    second = run(workspace, keep=0.4, scores=tmp_path / "s.parquet")
    ids = [Subset.load(result["path"]).sample_ids.tolist() for result in (first, second)]
    assert ids[0] == ids[1]
    table = pq.read_table(tmp_path / "s.parquet")
    assert np.flatnonzero(table["kept"].to_numpy()).tolist() == ids[0]
    # Also when nothing is selected anew.
    run(workspace, keep=0.4, export=tmp_path / "again.parquet")
    assert pq.read_table(tmp_path / "again.parquet").equals(table)


def test_an_existing_export_is_refused_before_any_work_unless_overwrite(workspace, tmp_path):
    out, export = tmp_path / "chosen.npz", tmp_path / "s.csv"
    export.write_text("mine")
    with pytest.raises(ConfigError, match=r"export=.*s\.csv: it exists.*overwrite"):
        run(workspace, out=out, export=export)
    assert (export.read_text(), out.exists()) == ("mine", False)
    run(workspace, out=out, export=export, overwrite=True)
    assert export.read_text().startswith('"sample_id"')


def test_the_scores_that_are_read_are_never_replaced(workspace, tmp_path):
    scores = tmp_path / "s.npy"
    np.save(scores, np.random.default_rng(0).random(NUM_SAMPLES))
    (tmp_path / "same.npy").symlink_to(scores)
    before = state(scores)
    for export in (scores, tmp_path / "same.npy"):
        with pytest.raises(ConfigError, match=f"export={export}, the file of scores"):
            run(workspace, scores=scores, export=export, overwrite=True)
    assert state(scores) == before
    assert not (workspace / "subsets").exists()


@pytest.mark.parametrize("kind", ["<f2", ">f4", ">f8", ">i4", ">u8"])
def test_stratified_does_not_depend_on_the_dtype_of_the_scores(workspace, tmp_path, kind):
    ranks = np.random.default_rng(0).permutation(NUM_SAMPLES) * 2
    np.save(tmp_path / "float.npy", ranks.astype(np.float32))
    np.save(tmp_path / "other.npy", ranks.astype(kind))
    found = [
        Subset.load(
            run(workspace, method="stratified", keep=0.5, scores=tmp_path / name)["path"]
        ).sample_ids.tolist()
        for name in ("float.npy", "other.npy")
    ]
    assert found[0] == found[1]


def test_a_random_selection_can_export_scores(workspace, tiny_store, tmp_path):
    plain = run(workspace, method="random")
    result = run(workspace, method="random", score="el2n", export=tmp_path / "s.npy")
    assert np.array_equal(np.load(tmp_path / "s.npy"), tiny_store.scores["el2n"])
    ids = [Subset.load(each["path"]).sample_ids.tolist() for each in (plain, result)]
    assert ids[0] == ids[1]


def test_a_subset_is_found_again_by_the_path_that_it_was_written_to(workspace, tmp_path):
    for name in ("x.v1.npz", "x.v2.npz"):
        run(workspace, out=tmp_path / name, method="random", seed=int(name[3]))
    found = [Workspace(workspace).require_subset(str(tmp_path / f"x.v{n}.npz")) for n in (1, 2)]
    assert found == [tmp_path / "x.v1.npz", tmp_path / "x.v2.npz"]
    assert subset_beton(found[0]) != subset_beton(found[1])


# Beside another subset


def test_two_subsets_are_compared_class_by_class(workspace, tiny_store, caplog):
    other = Subset.load(run(workspace, method="hard", keep=0.25, balance="none")["path"])
    with caplog.at_level(logging.INFO, logger="kdcache"):
        result = run(workspace, method="easy", keep=0.9, compare="hard-0.25-none")
    found = set(Subset.load(result["path"]).sample_ids.tolist())
    shared = found & set(other.sample_ids.tolist())
    labels = tiny_store.labels
    kept = np.bincount(labels[sorted(found)], minlength=4)
    others = np.bincount(labels[other.sample_ids], minlength=4)
    assert result["compare"] == {
        "other_kept": 18,
        "overlap": len(shared),
        "overlap_share": round(len(shared) / 18, 6),
        "by_chance_share": round(float((kept * others / 18).sum()) / 18, 6),
        "kept_per_class": kept.tolist(),
        "other_kept_per_class": others.tolist(),
    }
    assert 0 < len(shared) < 18
    lines = [" ".join(record.getMessage().split()) for record in caplog.records]
    for label in range(4):
        assert f"class_{label} {kept[label]} of 18, the other subset {others[label]}" in lines
    assert any(
        line.startswith(f"{len(shared)} samples are also in the other subset") for line in lines
    )


def test_a_comparison_with_the_full_data_shares_everything(workspace):
    result = run(workspace, keep=0.5, compare="full")
    assert (result["compare"]["overlap"], result["compare"]["other_kept"]) == (36, NUM_SAMPLES)
    assert result["compare"]["overlap_share"] == 1


def test_a_comparison_with_other_data_or_a_missing_subset_is_refused(workspace):
    subsets = workspace / "subsets"
    Subset(np.arange(9), {"data_fingerprint": "f" * 64}).save(subsets / "data.npz")
    Subset(np.arange(73)).save(subsets / "large.npz")
    with pytest.raises(CacheMismatchError, match=f"data.npz was .*other data.* is {'f' * 12}"):
        run(workspace, compare="data")
    with pytest.raises(CacheMismatchError, match=r"large\.npz holds sample 72, .*below 72"):
        run(workspace, compare="large")
    with pytest.raises(ConfigError, match="subset=none-such"):
        run(workspace, compare="none-such")


# What is asked wrongly


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "window"}, r"start is not given, expected a number in \[0, 0\.3\]"),
        (
            {"method": "window", "start": 0.31},
            r"start=0\.31: .* \[0, 0\.3\], what keep=0\.7",
        ),
        ({"method": "window", "start": -0.1}, r"start=-0\.1"),
        ({"start": 0.1}, r"start=0\.1: expected method window"),
        ({"method": "stratified", "cut": 0.4}, r"cut=0\.4: .* \[0, 0\.3\]"),
        ({"method": "beta", "cut": 0.1}, r"cut=0\.1: expected method stratified"),
        ({"method": "beta", "peak": 1.5}, r"peak=1\.5: .* \[0, 1\]"),
        ({"method": "beta", "concentration": -1.0}, r"concentration=-1\.0: .* at least 0"),
        ({"peak": 0.5}, r"peak=0\.5: expected method beta"),
        ({"method": "class-adaptive", "balance": "none"}, "balance=none: .* class-adaptive"),
        ({"min_per_class": -1}, "min_per_class=-1"),
        ({"scores": Path("a.npy"), "score": "el2n"}, "score=el2n: expected no scores"),
        ({"scores": Path("a.npy"), "average_with": ("r34",)}, "average_with=r34"),
        ({"method": "random", "score": "el2n"}, "score=el2n: expected a method that reads"),
        ({"method": "class-adaptive", "scores": Path("a.npy")}, r"scores=a\.npy: expected a"),
        ({"method": "random", "average_with": ("r34",)}, "average_with=r34: expected a"),
        *(
            ({"method": method, "seed": 3, **more}, "seed=3: expected method random, strat")
            for method, more in (
                *(("easy", {}), ("hard", {}), ("medium", {}), ("window", {"start": 0.1})),
            )
        ),
        ({"keep": 1.5}, r"keep=1\.5: expected a number in \(0, 1\]"),
        ({"method": "beta", "concentration": np.inf}, "concentration=inf: .* finite"),
        ({"method": "beta", "concentration": np.nan}, "concentration=nan: .* finite"),
        ({"out": Path("mine")}, r"out=mine: expected a file named NAME\.npz$"),
        ({"out": Path("x.v1")}, r"out=x\.v1: expected a file named NAME\.npz$"),
        ({"export": Path("s.txt")}, r"export=s\.txt: expected a file named NAME\.npy or NAM"),
        ({"scores": Path("s.npz")}, r"scores=s\.npz: expected a file named NAME\.npy or NAM"),
    ],
    ids=str,
)
def test_options_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        SelectOptions(**options)


def test_a_window_may_end_with_the_hardest_sample():
    assert SelectOptions(method="window", keep=0.9, start=0.1).start == 0.1


def test_selecting_loads_neither_torch_nor_ffcv(workspace):
    code = (
        "import sys; from kdcache.cli import main; "
        f"assert main(['select', '--quiet', '--workspace', {str(workspace)!r}]) == 0; "
        "sys.exit(' '.join({'torch', 'torchvision', 'ffcv'} & set(sys.modules)) or 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert len(Subset.load(workspace / "subsets" / "medium-0.7.npz")) == 50


@pytest.fixture
def with_images(workspace, tiny_workspace) -> Path:
    """The workspace of the store, with its images packed."""
    for file in tiny_workspace.glob("train.*"):
        (workspace / file.name).symlink_to(file)
    return workspace


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_an_export_names_each_image_and_is_read_back(with_images, tmp_path, suffix):
    export = tmp_path / f"s.{suffix}"
    first = run(with_images, keep=0.4, export=export)
    table = csv.read_csv(export) if suffix == "csv" else pq.read_table(export)
    assert table.column_names == ["sample_id", "file", "label", "score", "kept"]
    assert table["file"].to_pylist() == names_of(with_images / "train.beton")
    second = run(with_images, keep=0.4, scores=export)
    assert Subset.load(second["path"]).sample_ids.tolist() == (
        Subset.load(first["path"]).sample_ids.tolist()
    )


def test_an_export_of_another_order_is_refused_by_its_names(with_images, tmp_path):
    run(with_images, keep=0.4, export=tmp_path / "s.csv")
    lines = (tmp_path / "s.csv").read_text().splitlines()
    ids = [line.split(",", 1)[0] for line in lines[1:]]
    others = [line.split(",", 1)[1] for line in lines[1:]]
    moved = [f"{sample_id},{other}" for sample_id, other in zip(ids[::-1], others, strict=True)]
    (tmp_path / "moved.csv").write_text("\n".join([lines[0], *moved]) + "\n")
    with pytest.raises(ConfigError, match=r"says that sample 71 is .*, expected .*another pack"):
        run(with_images, keep=0.4, scores=tmp_path / "moved.csv")


def test_without_images_an_export_has_no_names_and_says_so(workspace, tmp_path, caplog):
    run(workspace, keep=0.4, export=tmp_path / "s.csv")
    assert (tmp_path / "s.csv").read_text().startswith('"sample_id","label"')
    assert "the names of the images are left out: " in caplog.text


def test_the_kept_files_are_listed(with_images, tmp_path):
    out = tmp_path / "kept.txt"
    result = run(with_images, keep=0.4, kept_files=out)
    names = names_of(with_images / "train.beton")
    ids = Subset.load(result["path"]).sample_ids
    lines = out.read_text().splitlines()
    assert lines == [names[sample_id] for sample_id in ids]
    assert all(Path(line).is_file() for line in lines)
    with pytest.raises(ConfigError, match=r"kept_files=.*kept\.txt: it exists.*overwrite"):
        run(with_images, keep=0.3, kept_files=out)
    assert out.read_text().splitlines() == lines
    run(with_images, keep=0.3, kept_files=out, overwrite=True)
    assert len(out.read_text().splitlines()) < len(lines)


def test_kept_files_need_the_images_before_anything_is_written(workspace, tmp_path):
    with pytest.raises(DatasetError, match=r"train\.beton is missing"):
        run(workspace, keep=0.4, kept_files=tmp_path / "kept.txt")
    assert not (workspace / "subsets").exists()
