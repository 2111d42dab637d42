"""Scores of the user's own, and scores that a store was built without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kdcache.cli import main
from kdcache.seals import write_sealed_npz
from kdcache.selection.subset import Subset
from kdcache.store.logit_store import LogitStore
from tests.conftest import ROOT
from tests.workspaces import copy_workspace

SECOND_LARGEST = """
def second(logits, labels):
    return logits.topk(2, dim=1).values[:, 1]

def transposed(logits, labels):
    return logits.mean(dim=0)

def a_list(logits, labels):
    return [0.0] * len(labels)

def nan(logits, labels):
    scores = logits[:, 0].clone()
    scores[5] = float("nan")
    return scores

number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder, which is not on Python's path."""
    name = f"scores_of_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(SECOND_LARGEST)
    monkeypatch.chdir(tmp_path)
    return name


def files_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def expected_scores(store: LogitStore) -> np.ndarray:
    logits = store.logits(np.arange(store.manifest.samples), 0)
    return np.sort(logits, axis=1)[:, -2]


def select(workspace: Path, score: str, *more: str) -> int:
    words = ["select", "--score", score, "--method", "hard", "--keep", "0.25", "--balance", "none"]
    words += ["--out", "kept.npz", "--overwrite", "--workspace", str(workspace), "--quiet"]
    return main([*words, *more])


def test_select_accepts_a_users_score(workspace, module, tiny_store):
    assert select(workspace, f"{module}:second") == 0
    kept = Subset.load("kept.npz")
    hardest = np.argsort(expected_scores(tiny_store), kind="stable")[-len(kept) :]
    assert kept.sample_ids.tolist() == sorted(hardest.tolist())
    assert kept.provenance["score"] == f"{module}:second"
    assert len(kept.provenance["score_code_digest"]) == 64


def test_a_score_file_is_written_beside_the_store_which_does_not_change(
    workspace, module, tiny_store, capsys
):
    path = workspace / "stores" / tiny_store.path.name
    before = files_of(path)
    words = ["score", f"{module}:second", "--workspace", str(workspace), "--json"]
    assert main(words) == 0
    result = json.loads(capsys.readouterr().out)
    file = workspace / "stores" / f"{path.stem}.scores" / f"{module}-second.npz"
    assert result["path"] == str(file.resolve())
    assert result["computed_from"] == "stored rows of view 0 (float32)"
    assert files_of(path) == before
    with np.load(file) as arrays:
        assert arrays["scores"].dtype == np.float32
        np.testing.assert_array_equal(arrays["scores"], expected_scores(tiny_store))
        assert json.loads(str(arrays["about"]))["computed_from"] == result["computed_from"]
    written = file.stat().st_mtime_ns
    assert main(words) == 0
    assert file.stat().st_mtime_ns == written, "a score that is there is not computed again"


def test_select_reads_the_score_file(workspace, module, tiny_store):
    assert main(["score", f"{module}:second", "--workspace", str(workspace)]) == 0
    (file,) = workspace.glob("stores/*.scores/*.npz")
    with np.load(file) as arrays:
        about = arrays["about"]
    scores = np.arange(tiny_store.manifest.samples, dtype=np.float32)
    write_sealed_npz(file, {"scores": scores, "about": about})
    assert select(workspace, f"{module}:second") == 0
    kept = Subset.load("kept.npz").sample_ids
    assert kept.tolist() == list(range(len(scores) - len(kept), len(scores)))


def test_a_score_file_from_other_code_or_another_store_is_refused(workspace, module, capsys):
    assert main(["score", f"{module}:second", "--workspace", str(workspace)]) == 0
    (file,) = workspace.glob("stores/*.scores/*.npz")
    with np.load(file) as arrays:
        scores, about = arrays["scores"], json.loads(str(arrays["about"]))
    for name in ("code_digest", "manifest_digest"):
        changed = json.dumps(about | {name: "another"})
        write_sealed_npz(file, {"scores": scores, "about": changed})
        assert select(workspace, f"{module}:second") == 1
        said = capsys.readouterr().err
        assert name in said
        assert f"kdcache score {module}:second --store {workspace}" in said
    remedy = ["score", f"{module}:second", "--overwrite", "--workspace", str(workspace)]
    assert main(remedy) == 0
    assert select(workspace, f"{module}:second") == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("transposed", "expected a tensor of shape (72,)"),
        ("a_list", "returned list"),
        ("nan", "the score of sample 5 is nan"),
        ("number", "number is int"),
        ("absent", "absent"),
    ],
)
def test_a_score_that_is_not_one_number_per_sample_is_refused(
    workspace, module, capsys, name, message
):
    assert main(["score", f"{module}:{name}", "--workspace", str(workspace)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1 or said.splitlines()[-1].startswith("kdcache: ")
    assert not list(workspace.glob("stores/*.scores/*"))


REGISTERED = """
import json, sys
from kdcache.scores.registry import SCORES
SCORES._places["second"] = sys.argv[1] + ":second"
from kdcache.cli import main
print(json.dumps([main(words) for words in json.loads(sys.argv[2])]))
"""


def test_an_older_store_without_a_new_score_is_complete(
    tiny_workspace, tiny_store, module, tmp_path
):
    workspace = copy_workspace(tiny_workspace, tmp_path / "copy")
    path = workspace / "stores" / tiny_store.path.name
    before = files_of(path)
    build = ["build-logits", "--teacher", "tests.teachers:projection", "--views", "3"]
    build += ["--codec", "float32", "--batch-size", "8", "--device", "cpu"]
    hard = ["select", "--score", "second", "--method", "hard"]
    commands: list[list[str]] = [
        ["verify"],
        hard,
        build,
        ["score", "second"],
        hard,
        [*build, "--store", "new.zarr"],
        [*build, "--subset", "hard-0.7-second", "--store", str(workspace / "stores" / "part.zarr")],
    ]
    words = [[*command, "--workspace", str(workspace)] for command in commands]
    process = subprocess.run(
        [sys.executable, "-c", REGISTERED, module, json.dumps(words)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.stdout.splitlines()[-1:] == ["[0, 2, 0, 0, 0, 0, 0]"], process.stderr
    assert "Run: kdcache score second" in process.stderr
    assert "no forward is repeated" in process.stderr
    assert files_of(path) == before
    # A store that is built now has it, from the teacher's own answers.
    group = LogitStore.open(tmp_path / "new.zarr").group
    np.testing.assert_array_equal(group["scores/second"][:], expected_scores(tiny_store))
