"""`kdcache select`: names, provenance, reuse, and what is refused."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from kdcache.errors import (
    CacheCorruptError,
    CacheIncompleteError,
    CacheMismatchError,
    ConfigError,
)
from kdcache.options import SelectOptions
from kdcache.selection.policies import select_ids
from kdcache.selection.select import select, subset_name
from kdcache.selection.subset import Subset

NUM_SAMPLES = 72


def run(workspace: Path, **options: Any) -> dict[str, Any]:
    return select(SelectOptions(workspace=workspace, **options))


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
            {"method": "easy", "keep": 0.3, "score": "margin", "balance": "class", "seed": 12},
            "easy-0.3-margin-class-s12",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_subset_is_named_after_what_is_not_a_default(options, name):
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
    remembered = json.loads((workspace / "workspace.json").read_text())
    assert remembered == {"store": "stores/projection.zarr", "subset": "subsets/hard-0.4.npz"}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "easy", "score": "margin", "balance": "none", "keep": 0.2},
        {"method": "random", "seed": 5, "balance": "class", "keep": 0.9},
    ],
    ids=["defaults", "easy", "random"],
)
def test_the_ids_are_chosen_from_the_scores_in_the_store(workspace, tiny_store, options):
    defaults = {"method": "medium", "keep": 0.7, "balance": "proportional", "seed": 0}
    chosen = defaults | {name: value for name, value in options.items() if name != "score"}
    scores = tiny_store.scores[options.get("score", "cross_entropy")]
    expected = select_ids(scores, tiny_store.labels, num_classes=4, **chosen)
    found = Subset.load(run(workspace, **options)["path"])
    assert found.sample_ids.tolist() == expected.tolist()


def test_a_subset_says_where_it_comes_from(workspace, tiny_store):
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
    remembered = json.loads((workspace / "workspace.json").read_text())
    assert remembered["subset"] == "subsets/medium-0.7.npz"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"method": "easy"}, "method is 'easy', there 'medium'"),
        ({"keep": 0.5}, "keep is 0.5, there 0.7"),
        ({"score": "el2n"}, "score is 'el2n', there 'cross_entropy'"),
        ({"balance": "class"}, "balance is 'class', there 'proportional'"),
        ({"seed": 1}, "seed is 1, there 0"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, dict) else "",
)
def test_a_file_that_was_made_otherwise_is_refused_until_overwrite(
    workspace, tmp_path, options, named
):
    out = tmp_path / "chosen.npz"
    run(workspace, out=out)
    before = state(out)
    with pytest.raises(CacheMismatchError, match=rf"made otherwise: {named}\. .*--overwrite"):
        run(workspace, out=out, **options)
    assert state(out) == before
    run(workspace, out=out, overwrite=True, **options)
    (name, value) = next(iter(options.items()))
    assert Subset.load(out).provenance[name] == value


def test_a_subset_of_another_teacher_is_refused(workspace):
    run(workspace)
    path = store_of(workspace) / "zarr.json"
    about = json.loads(path.read_text())
    about["attributes"]["kdcache"]["teacher_digest"] = "e" * 64
    path.write_text(json.dumps(about))
    with pytest.raises(CacheMismatchError, match=f"teacher_digest is '{'e' * 64}', there '"):
        run(workspace)


def test_a_file_of_another_kind_is_refused_until_overwrite(workspace, tmp_path):
    out = tmp_path / "notes.npz"
    out.write_text("not a subset")
    with pytest.raises(CacheCorruptError, match=r"notes\.npz is no subset file"):
        run(workspace, out=out)
    assert out.read_text() == "not a subset"
    run(workspace, out=out, overwrite=True)
    assert len(Subset.load(out)) == 50


def test_a_file_outside_the_workspace_is_remembered_too(workspace, tmp_path):
    out = tmp_path / "folder" / "chosen"
    assert run(workspace, out=out)["path"] == str(out.resolve())
    remembered = json.loads((workspace / "workspace.json").read_text())
    assert remembered["subset"] == str(out.resolve())


def test_all_samples_can_be_kept(workspace):
    found = Subset.load(run(workspace, keep=1)["path"])
    assert found.sample_ids.tolist() == list(range(NUM_SAMPLES))


def test_a_store_is_found_by_the_name_of_its_teacher(workspace):
    store_of(workspace).rename(workspace / "stores" / "other.zarr")
    assert run(workspace, teacher="other")["kept"] == 50


def test_without_a_store_the_command_that_builds_one_is_named(workspace, tmp_path):
    with pytest.raises(ConfigError, match=r"no store was built yet.*kdcache build-logits"):
        run(tmp_path / "empty")
    with pytest.raises(ConfigError, match=r"resnet50\.zarr does not exist.*--teacher resnet50"):
        run(workspace, teacher="resnet50")


def test_an_unfinished_store_is_refused(workspace):
    (store_of(workspace) / "views/3/complete").unlink()
    with pytest.raises(CacheIncompleteError, match="3 of 4 views"):
        run(workspace)
    assert not (workspace / "subsets").exists()


def test_a_score_that_is_not_a_number_names_its_sample_and_leaves_no_file(workspace):
    scores = zarr.open_group(store_of(workspace), mode="r+")["scores/el2n"]
    scores[41] = np.nan
    with pytest.raises(ConfigError, match=r"sample 41 is nan \(1 such samples\)"):
        run(workspace, score="el2n")
    assert not (workspace / "subsets").exists()
    assert run(workspace)["kept"] == 50


def test_the_user_is_told_what_each_class_keeps(workspace, tiny_store, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("kdcache"), "propagate", True)
    with caplog.at_level(logging.INFO, logger="kdcache"):
        ids = Subset.load(run(workspace, method="hard", keep=0.5)["path"]).sample_ids
    kept = np.bincount(tiny_store.labels[ids])
    sizes = np.bincount(tiny_store.labels)
    lines = [" ".join(record.getMessage().split()) for record in caplog.records]
    for label in range(4):
        assert f"class_{label} {kept[label]} of {sizes[label]}" in lines


def test_the_user_is_warned_of_classes_that_keep_nothing(workspace, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("kdcache"), "propagate", True)
    with caplog.at_level(logging.WARNING, logger="kdcache"):
        run(workspace, keep=0.02, balance="none")
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("3 classes keep no sample, the first is class_")


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
