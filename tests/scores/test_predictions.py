"""Scores against references in float64, their direction and their ranges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.scores.predictions import STATS
from kdcache.scores.registry import SCORES

several_examples = settings(max_examples=60, deadline=None)


def probabilities(logits_BC: np.ndarray) -> np.ndarray:
    shifted_BC = logits_BC - logits_BC.max(axis=1, keepdims=True)
    return np.exp(shifted_BC) / np.exp(shifted_BC).sum(axis=1, keepdims=True)


def all_but(values_BC: np.ndarray, places_B: np.ndarray) -> np.ndarray:
    """Sum each row without one of its places; never 1 minus something close to 1."""
    rest_BC = values_BC.copy()
    rest_BC[np.arange(len(rest_BC)), places_B] = 0
    return rest_BC.sum(axis=1)


def cross_entropy(logits_BC: np.ndarray, labels_B: np.ndarray) -> np.ndarray:
    own_B1 = logits_BC[np.arange(len(labels_B)), labels_B][:, None]
    with np.errstate(over="ignore"):
        rest_B = all_but(np.exp(logits_BC - own_B1), labels_B)
    return np.log1p(rest_B)


def entropy(logits_BC: np.ndarray, _labels_B: np.ndarray) -> np.ndarray:
    return sum(
        probabilities(logits_BC)[:, place]
        * cross_entropy(logits_BC, np.full(len(logits_BC), place))
        for place in range(logits_BC.shape[1])
    )


def margin(logits_BC: np.ndarray, labels_B: np.ndarray) -> np.ndarray:
    second_B = np.sort(probabilities(logits_BC), axis=1)[:, -2]
    return least_confidence(logits_BC, labels_B) + second_B


def least_confidence(logits_BC: np.ndarray, _labels_B: np.ndarray) -> np.ndarray:
    return all_but(probabilities(logits_BC), logits_BC.argmax(axis=1))


def el2n(logits_BC: np.ndarray, labels_B: np.ndarray) -> np.ndarray:
    probs_BC = probabilities(logits_BC)
    return np.sqrt(all_but(probs_BC**2, labels_B) + all_but(probs_BC, labels_B) ** 2)


REFERENCES = {
    "cross_entropy": cross_entropy,
    "entropy": entropy,
    "margin": margin,
    "least_confidence": least_confidence,
    "el2n": el2n,
}


@st.composite
def batches(draw: st.DrawFn, least_classes: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw (B, C) logits from flat to very confident, with labels of any kind."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows, classes = draw(st.integers(1, 6)), draw(st.integers(least_classes, 12))
    scale = draw(st.sampled_from([0.0, 1e-3, 1.0, 5.0, 20.0, 100.0]))
    offset = draw(st.sampled_from([0.0, -30.0, 500.0]))
    logits_BC = (rng.normal(size=(rows, classes)) * scale + offset).astype(np.float32)
    return torch.from_numpy(logits_BC), torch.from_numpy(rng.integers(classes, size=rows))


def test_every_score_has_a_reference():
    assert set(SCORES) == set(REFERENCES)


@pytest.mark.parametrize("name", SCORES)
@several_examples
@given(batch=batches())
def test_a_score_is_its_formula_in_float64(name, batch):
    logits_BC, labels_B = batch
    actual = SCORES[name](logits_BC, labels_B)
    expected = REFERENCES[name](logits_BC.double().numpy(), labels_B.numpy())
    assert actual.dtype == torch.float32
    # One rounding to float32, and 1 - p in float64: a sure prediction keeps its score to 1e-15.
    torch.testing.assert_close(actual, torch.from_numpy(expected).float(), rtol=1e-6, atol=1e-15)


@pytest.mark.parametrize("name", SCORES)
def test_scores_of_confident_predictions_differ(name):
    # 1 - p is 2e-9 and 9e-14: both are 0 in float32.
    logits_BC = torch.tensor([[30.0, 0.0], [20.0, 0.0]])
    surer, sure = SCORES[name](logits_BC, torch.tensor([0, 0]))
    assert 0 < surer < sure


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_a_higher_score_is_a_harder_sample(name, classes):
    sure, unsure = torch.zeros(2, classes)
    sure[1], unsure[1] = 4.0, 0.5
    easy, hard = SCORES[name](torch.stack([sure, unsure]), torch.tensor([1, 1]))
    assert hard > easy


@pytest.mark.parametrize("name", ["cross_entropy", "el2n"])
def test_a_wrong_prediction_is_harder_than_an_uncertain_one(name):
    logits_BC = torch.tensor([[4.0, 0.0], [0.0, 0.0]])
    wrong, unsure = SCORES[name](logits_BC, torch.tensor([1, 1]))
    assert wrong > unsure


@pytest.mark.parametrize("name", ["entropy", "margin", "least_confidence"])
@several_examples
@given(batch=batches())
def test_scores_of_the_prediction_ignore_the_label(name, batch):
    logits_BC, labels_B = batch
    others_B = (labels_B + 1) % logits_BC.shape[1]
    assert torch.equal(SCORES[name](logits_BC, labels_B), SCORES[name](logits_BC, others_B))


@several_examples
@given(batch=batches())
def test_scores_stay_in_their_ranges(batch):
    logits_BC, labels_B = batch
    classes = logits_BC.shape[1]
    highest = {
        "cross_entropy": np.inf,
        "entropy": np.log(classes),
        "margin": 1,
        "least_confidence": 1 - 1 / classes,
        "el2n": np.sqrt(2),
    }
    for name, score in SCORES.items():
        values = score(logits_BC, labels_B)
        assert (values >= 0).all(), name
        assert (values <= highest[name] * (1 + 1e-6)).all(), name  # rounded to float32


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cross_entropy", np.log(5)),
        ("entropy", np.log(5)),
        ("margin", 1),
        ("least_confidence", 4 / 5),
        ("el2n", np.sqrt(4 / 5)),
    ],
)
def test_a_uniform_prediction_has_its_closed_form_score(name, expected):
    actual = SCORES[name](torch.full((1, 5), 3.0), torch.tensor([2]))
    torch.testing.assert_close(actual, torch.tensor([expected]).float(), rtol=1e-6, atol=0)


@several_examples
@given(gap=st.floats(-30, 30, width=32), label=st.integers(0, 1))
def test_two_classes_have_the_scores_of_the_logistic_function(gap, label):
    logits_BC, labels_B = torch.tensor([[gap, 0.0]]), torch.tensor([label])
    probability = 1 / (1 + np.exp(-gap))
    own = probability if label == 0 else 1 - probability
    smaller = 1 / (1 + np.exp(abs(gap)))
    expected = {
        "cross_entropy": np.log1p(np.exp(-gap if label == 0 else gap)),
        "entropy": np.log1p(np.exp(-abs(gap))) + smaller * abs(gap),
        "margin": 2 * smaller,
        "least_confidence": smaller,
        "el2n": np.sqrt(2) * (1 - own),
    }
    for name, score in SCORES.items():
        torch.testing.assert_close(
            score(logits_BC, labels_B),
            torch.tensor([expected[name]]).float(),
            rtol=1e-6,
            atol=1e-15,
        )


@pytest.mark.parametrize("name", [*SCORES, "logit_std"])
def test_with_one_class_every_score_is_zero(name):
    values = {**SCORES, **STATS}[name](torch.tensor([[3.0], [-700.0]]), torch.tensor([0, 0]))
    assert values.tolist() == [0, 0]
    assert values.dtype == torch.float32


def test_with_one_class_every_prediction_is_correct():
    logits_BC, labels_B = torch.tensor([[3.0], [-700.0]]), torch.tensor([0, 0])
    assert STATS["correct"](logits_BC, labels_B).tolist() == [True, True]
    assert STATS["top1"](logits_BC, labels_B).tolist() == [0, 0]
    assert STATS["logsumexp"](logits_BC, labels_B).tolist() == [3.0, -700.0]


@several_examples
@given(batch=batches())
def test_statistics_match_numpy(batch):
    logits_BC, labels_B = batch
    rows_BC = logits_BC.double().numpy()
    largest_B = rows_BC.max(axis=1)
    expected = {
        "logit_std": rows_BC.std(axis=1, ddof=1),  # MDSLR's divisor is C - 1
        "logsumexp": largest_B + np.log(np.exp(rows_BC - largest_B[:, None]).sum(axis=1)),
    }
    for name, values in expected.items():
        actual = STATS[name](logits_BC, labels_B)
        assert actual.dtype == torch.float32
        # Float32 arithmetic on logits of up to 1000.
        torch.testing.assert_close(actual, torch.from_numpy(values).float(), rtol=1e-5, atol=1e-4)


def test_the_standard_deviation_has_the_divisor_c_minus_1():
    actual = STATS["logit_std"](torch.tensor([[1.0, 3.0]]), torch.tensor([0]))
    torch.testing.assert_close(actual, torch.tensor([2.0**0.5]), rtol=1e-6, atol=0)


def test_the_prediction_is_the_largest_logit():
    logits_BC = torch.tensor([[0.0, 2.0, 1.0], [5.0, 2.0, 1.0]])
    labels_B = torch.tensor([1, 2])
    top1, correct = STATS["top1"](logits_BC, labels_B), STATS["correct"](logits_BC, labels_B)
    assert (top1.tolist(), top1.dtype) == ([1, 0], torch.int64)
    assert (correct.tolist(), correct.dtype) == ([True, False], torch.bool)
