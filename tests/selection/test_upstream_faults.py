"""Faults of published selection code that concern a one-pass score or a policy, each kept out.

The numbers are those of the project's survey of that code.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdcache.errors import ConfigError
from kdcache.options import PruningOptions, SelectOptions
from kdcache.scores.registry import SCORES
from kdcache.selection.pruning import select_ids
from kdcache.selection.score_files import read_scores
from kdcache.selection.select import select
from kdcache.selection.subset import Subset


def read(path, num_samples):
    return read_scores(path, num_samples, data_fingerprint="", sample_names=list)


@pytest.mark.parametrize("balance", ["proportional", "class", "none"])
@pytest.mark.parametrize("score", ["entropy", "margin", "least_confidence"])
def test_1_deepcore_uncertainty_keeps_the_least_certain_with_and_without_balance(score, balance):
    logits = torch.tensor([[float(sure), 0.0] for sure in (9, 8, 7, 6, 0.4, 0.3, 0.2, 0.1)])
    labels = torch.tensor([0, 1] * 4)
    scores = SCORES[score](logits, labels).numpy()
    options = PruningOptions(method="hard", keep=0.5, balance=balance)
    ids = select_ids(scores, labels.numpy(), options, num_classes=2)
    assert ids.tolist() == [4, 5, 6, 7]


def test_2_deepcore_least_confidence_is_of_probabilities_not_of_raw_logits():
    logits = torch.tensor([[1.0, 0.0, 0.0], [11.0, 10.0, 10.0], [9.0, 9.0, 9.0]])
    scores = SCORES["least_confidence"](logits, torch.zeros(3, dtype=torch.int64))
    assert scores[0] == pytest.approx(scores[1].item(), abs=1e-6)
    assert scores[2] == pytest.approx(2 / 3, abs=1e-6)


def test_5_ccs_class_balance_counts_every_class_not_the_last_for_all():
    labels = np.repeat([0, 1, 2], [50, 30, 4])
    scores = np.random.default_rng(0).random(84).astype(np.float32)
    options = PruningOptions(method="stratified", keep=0.5, balance="class", cut=0.1)
    ids = select_ids(scores, labels, options, num_classes=3)
    assert np.bincount(labels[ids]).tolist() == [19, 19, 4]


def test_6_ccs_stratified_returns_sample_ids_not_indices_among_the_survivors():
    # The hardest fifth comes first: a place among the survivors is 20 below the sample's id.
    scores = np.concatenate([np.full(20, 9.0), np.linspace(0, 1, 80)]).astype(np.float32)
    options = PruningOptions(method="stratified", keep=0.8, cut=0.2)
    ids = select_ids(scores, np.zeros(100, int), options, num_classes=1)
    assert ids.tolist() == list(range(20, 100))


@pytest.mark.parametrize("direction", [1, -1])
def test_7_tdds_sorted_scores_are_refused(tmp_path, direction):
    values = np.sort(np.random.default_rng(0).random(50))[::direction]
    np.save(tmp_path / "score.npy", values)
    with pytest.raises(
        ConfigError, match=r"score\.npy are sorted .* in the order of the sample ids"
    ):
        read(tmp_path / "score.npy", 50)
    np.save(tmp_path / "equal.npy", np.ones(50))
    assert read(tmp_path / "equal.npy", 50).tolist() == [1] * 50


def test_10_dual_an_order_or_mask_is_not_accepted_as_scores(tmp_path):
    order = np.argsort(np.random.default_rng(0).random(50))
    np.save(tmp_path / "mask.npy", order)
    with pytest.raises(ConfigError, match=r"every number from 0 to 49 once, which is an order"):
        read(tmp_path / "mask.npy", 50)
    np.save(tmp_path / "mask.npy", order < 20)
    with pytest.raises(ConfigError, match="holds bool"):
        read(tmp_path / "mask.npy", 50)
    np.save(tmp_path / "mask.npy", order[:20])
    with pytest.raises(ConfigError, match=r"shape \(20,\)"):
        read(tmp_path / "mask.npy", 50)


def test_14_mdslr_the_view_that_was_scored_is_recorded(workspace):
    clean = Subset.load(select(SelectOptions(workspace=workspace, keep=0.5)).to_json()["path"])
    parity = SelectOptions(workspace=workspace, keep=0.5, parity="mdslr")
    augmented = Subset.load(select(parity).to_json()["path"])
    assert clean.provenance.get("parity") is None
    assert augmented.provenance["parity"] == "mdslr"
    assert clean.sample_ids.tolist() != augmented.sample_ids.tolist()


def test_15_moderate_a_file_lists_the_kept_and_the_window_is_per_class_unless_asked(workspace):
    easy = Subset.load(
        select(SelectOptions(workspace=workspace, method="easy", keep=0.25)).to_json()["path"]
    )
    assert len(easy) == 18
    scores = np.concatenate([np.arange(10), np.arange(100, 110)]).astype(np.float32)
    labels = np.repeat([0, 1], 10)
    for balance, expected in {
        "proportional": [4, 5, 14, 15],
        "none": [8, 9, 10, 11],
    }.items():
        options = PruningOptions(method="medium", keep=0.2, balance=balance)
        ids = select_ids(scores, labels, options, num_classes=2)
        assert ids.tolist() == expected


def test_16_el2n_is_the_distance_from_the_label_of_one_clean_forward():
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 0.0]])
    labels = torch.tensor([0, 2])
    probabilities = np.exp(logits.double().numpy())
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    expected = np.sqrt(((probabilities - np.eye(3)[labels.numpy()]) ** 2).sum(axis=1))
    # Not its mean of squares, not a sum over epochs: at most sqrt 2. Rounded to float32 once.
    np.testing.assert_allclose(SCORES["el2n"](logits, labels).numpy(), expected, rtol=2**-23)
    certain = SCORES["el2n"](torch.tensor([[0.0, 50.0]]), torch.tensor([0]))
    assert certain.item() == pytest.approx(2**0.5)
