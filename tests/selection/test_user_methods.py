"""Selection methods of the user's own, through the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdcache.cli import main
from kdcache.selection.subset import Subset

METHODS = """
import numpy as np

def second_hardest(group, quota, context):
    # Changes what it was given, which must not matter.
    kept = group.sample_ids[-quota - 1 : -1]
    group.entries[:] = 0
    return kept

def by_everything(group, quota, context):
    ids = group.sample_ids
    assert (np.diff(context.order[ids]) >= 0).all()
    assert set(context.scores) == {"cross_entropy", "entropy", "margin", "least_confidence", "el2n"}
    assert (context.order == context.scores["entropy"]).all()
    assert context.correct.dtype == bool and (context.labels[ids] == group.number).all()
    distance = np.linalg.norm(context.features[ids].astype(float), axis=1)
    return ids[np.argsort(distance, kind="stable")[:quota]]

def drawn(group, quota, context):
    rng = context.generator("drawn", group.number)
    return rng.choice(group.sample_ids, quota, replace=False)

def too_few(group, quota, context):
    return group.sample_ids[: quota - 1]

def twice(group, quota, context):
    return np.repeat(group.sample_ids[:1], quota)

def outside(group, quota, context):
    return np.arange(quota) + 1000

def floats(group, quota, context):
    return context.order[group.sample_ids[:quota]]
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder, which is not on Python's path."""
    name = f"methods_of_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(METHODS)
    monkeypatch.chdir(tmp_path)
    return name


def select(workspace: Path, method: str, *more: str) -> Subset:
    words = ["select", "--method", method, "--keep", "0.5", "--out", "kept.npz", "--overwrite"]
    assert main([*words, "--workspace", str(workspace), "--quiet", *more]) == 0
    return Subset.load("kept.npz")


def test_the_subset_is_what_the_method_returns(workspace, module, tiny_store):
    kept = select(workspace, f"{module}:second_hardest", "--balance", "none")
    order = np.argsort(tiny_store.scores["cross_entropy"], kind="stable")
    assert kept.sample_ids.tolist() == sorted(order[-37:-1].tolist())
    assert len(kept.provenance["method_code_digest"]) == 64


def test_a_method_gets_scores_correctness_labels_and_features(
    workspace, module, tiny_store, monkeypatch
):
    features = np.random.default_rng(0).normal(size=(72, 4)).astype(np.float16)
    monkeypatch.setattr("kdcache.store.logit_store.LogitStore.features", lambda _: features)
    kept = select(workspace, f"{module}:by_everything", "--score", "entropy")
    distance = np.linalg.norm(features.astype(float), axis=1)
    for label in np.unique(tiny_store.labels):
        members = np.flatnonzero(tiny_store.labels == label)
        chosen = np.intersect1d(members, kept.sample_ids)
        left = np.setdiff1d(members, chosen)
        assert distance[chosen].max() <= distance[left].min()


def test_a_method_that_needs_features_is_refused_without_them(workspace, module, capsys):
    words = ["select", "--method", f"{module}:by_everything", "--score", "entropy"]
    assert main([*words, "--workspace", str(workspace)]) == 1
    assert "build-logits with --features" in capsys.readouterr().err


def test_draws_depend_on_the_seed_alone(workspace, module):
    first, again = (select(workspace, f"{module}:drawn").sample_ids.tolist() for _ in range(2))
    other = select(workspace, f"{module}:drawn", "--seed", "1").sample_ids.tolist()
    assert first == again != other


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("too_few", "35 sample ids for group 0, of which 35 are different, expected 36 different"),
        ("twice", "36 sample ids for group 0, of which 1 are different"),
        ("outside", "returned sample 1000 for group 0, which is not in it"),
        ("floats", "returned float32 of shape (36,)"),
    ],
)
def test_a_method_that_returns_invalid_ids_is_refused(workspace, module, capsys, name, message):
    words = ["select", "--method", f"{module}:{name}", "--keep", "0.5", "--balance", "none"]
    assert main([*words, "--workspace", str(workspace)]) == 2
    assert message in capsys.readouterr().err


def test_options_of_another_method_are_refused(workspace, module, capsys):
    words = ["select", "--method", f"{module}:drawn", "--start", "0.1"]
    assert main([*words, "--workspace", str(workspace)]) == 2
    assert "expected --method window" in capsys.readouterr().err
