"""The loss from encoded rows against the same loss from decoded ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.errors import ConfigError
from kdcache.loader.staging import Rows
from kdcache.store.codecs.codec import Codec
from kdcache.store.codecs.sampled import Sampled
from kdcache.store.codecs.topk import TopK
from kdcache.training.losses import loss as loss_module
from kdcache.training.losses.loss import Loss
from kdcache.training.losses.mix import Mix
from kdcache.training.losses.settings import LossSettings
from kdcache.training.losses.sparse import MIN_CLASSES, sparse_divergence
from tests.store.codecs import KINDS, drawn_logits, encoded, hard_logits, make_codec, softmax
from tests.training.losses.reference import (
    assert_gradient_is_that_of_finite_differences,
    assert_matches,
    kl,
    loss_of,
)

HAVE_SPARSE = ("topk", "sampled")


def rows_of(codec: Codec, logits_BC: np.ndarray) -> Rows:
    return Rows(torch.from_numpy(encoded(codec, logits_BC)), codec)


def student_of(rows: int, classes: int, *, seed: int = 3) -> torch.Tensor:
    return 2 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


def from_rows(
    monkeypatch: pytest.MonkeyPatch,
    student: torch.Tensor,
    rows: Rows,
    *,
    min_classes: int,
    **options: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss and its gradient; from `min_classes` classes on in the sparse form."""
    monkeypatch.setattr(loss_module, "MIN_CLASSES", min_classes)
    student = student.clone().requires_grad_()
    labels = torch.arange(len(student)) % student.shape[1]
    parts = loss_of(temperature=2.0, **options)(student, rows, labels, progress=1.0)
    parts.total.backward()
    return parts.per_sample, student.grad


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [1, 2, 3, 4, 17, 300])
@pytest.mark.parametrize("alpha", [0.9, 1.0])
def test_the_sparse_loss_equals_that_of_decoded_rows(monkeypatch, kind, classes, alpha):
    codec = make_codec(kind, classes)
    rows, student = rows_of(codec, drawn_logits(7, classes)), student_of(7, classes)
    found = from_rows(monkeypatch, student, rows, min_classes=0, alpha=alpha)
    dense = from_rows(monkeypatch, student, rows, min_classes=10**9, alpha=alpha)
    # Sums of float32 in another order; near 0 they cancel.
    torch.testing.assert_close(found[0], dense[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1], dense[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_sparse_probabilities_equal_those_of_the_decoded_row(temperature, k):
    codec = TopK(10, k)
    rows = torch.from_numpy(encoded(codec, drawn_logits(6, 10)))
    found = codec.sparse(rows, temperature=temperature)
    dense = softmax(codec.decode(rows, temperature=temperature).numpy() / temperature)
    probs = found.rest.expand(6, 10).clone().scatter_add_(1, found.indices, found.excess)
    assert_matches(probs, dense, rtol=1e-5)
    expected = torch.from_numpy((dense * np.log(dense)).sum(axis=1))
    # Of a sure row it is the difference of numbers near 1, in float32.
    torch.testing.assert_close(found.negative_entropy.double(), expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    logits=hard_logits(60.0),
    temperature=st.sampled_from([1.0, 4.0]),
    kind=st.sampled_from(HAVE_SPARSE),
)
def test_the_sparse_divergence_equals_that_of_the_decoded_row(logits, temperature, kind):
    classes = logits.shape[1]
    codec = (
        TopK(classes, min(3, classes))
        if kind == "topk"
        else Sampled(classes, draws=20, temperature=temperature, seed=5)
    )
    rows = torch.from_numpy(encoded(codec, logits))
    student = student_of(*logits.shape)
    answers = codec.sparse(rows, temperature=temperature)
    found = sparse_divergence(student, answers, temperature)
    dense = softmax(codec.decode(rows, temperature=temperature).numpy() / temperature)
    expected = kl(dense, softmax(student.numpy() / temperature))
    # float32: log-probabilities of up to 60 carry 4e-6.
    torch.testing.assert_close(found.double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", HAVE_SPARSE)
@pytest.mark.parametrize("temperature", [2.0])
def test_the_gradient_matches_finite_differences(kind, temperature):
    codec = make_codec(kind, 6)
    rows = torch.from_numpy(encoded(codec, drawn_logits(4, 6)))
    answers = codec.sparse(rows, temperature=temperature)
    exact = type(answers)(answers.indices, *(part.double() for part in answers[1:]))
    # In float64 the rounded probabilities must still sum to 1, or the constant has a gradient.
    missing = 1 - 6 * exact.rest - exact.excess.sum(dim=1, keepdim=True)
    exact = exact._replace(rest=exact.rest + missing / 6)
    weights = torch.tensor([0.3, -1.0, 2.0, 0.7], dtype=torch.float64)

    def total(logits: torch.Tensor) -> torch.Tensor:
        return (weights * sparse_divergence(logits, exact, temperature)).sum()

    assert_gradient_is_that_of_finite_differences(student_of(4, 6).double(), total)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(HAVE_SPARSE)))
def test_other_codecs_have_no_sparse_form(kind):
    codec = make_codec(kind, 6)
    rows = torch.from_numpy(encoded(codec, drawn_logits(4, 6)))
    assert codec.sparse(rows, temperature=2.0) is None


def test_repeated_draws_of_a_class_add_up():
    codec = Sampled(5, draws=8, temperature=1.0, seed=0)
    rows = torch.tensor([[0, 0, 0, 0, 3, 3, 4, 4], [2] * 8], dtype=torch.uint8)
    found = codec.sparse(rows, temperature=1.0)
    probs = torch.zeros(2, 5).scatter_add_(1, found.indices, found.excess)
    assert probs.tolist() == [[0.5, 0, 0, 0.25, 0.25], [0, 0, 1, 0, 0]]
    assert_matches(found.negative_entropy, [0.5 * np.log(0.5) + 0.5 * np.log(0.25), 0], rtol=1e-6)


def test_draws_for_another_temperature_are_refused():
    codec = make_codec("sampled", 6)
    rows = torch.from_numpy(encoded(codec, drawn_logits(4, 6)))
    with pytest.raises(ConfigError, match=r"temperature is 4\.0, expected 2\.0"):
        codec.sparse(rows, temperature=4.0)


@pytest.mark.parametrize(
    ("options", "is_sparse"),
    [
        ({}, True),
        ({"alpha": 1.0}, True),
        ({"standardise": True}, False),
        ({"loss": "dist"}, False),
        ({"loss": "dkd"}, False),
    ],
    ids=str,
)
def test_the_sparse_form_is_used_for_many_classes_if_the_loss_supports_it(
    monkeypatch, options, is_sparse
):
    """Plain KD does not decode; the other losses need the probability of every class."""
    decoded: list[int] = []
    decode = TopK.decode

    def count(self: TopK, *given: object, **named: object) -> object:
        decoded.append(self.num_classes)
        return decode(self, *given, **named)

    monkeypatch.setattr(TopK, "decode", count)
    for classes in (MIN_CLASSES - 1, MIN_CLASSES):
        codec = TopK(classes, 3)
        rows, student = rows_of(codec, drawn_logits(2, classes)), student_of(2, classes)
        loss_of(**options)(student, rows, torch.tensor([0, 1]), progress=1.0)
    assert decoded == [MIN_CLASSES - 1, MIN_CLASSES][: 1 if is_sparse else 2]


@pytest.mark.parametrize("changed", ["mixed", "reshaped"])
def test_mixed_or_reshaped_rows_are_always_decoded(monkeypatch, changed):
    rows, student = rows_of(TopK(20, 3), drawn_logits(6, 20)), student_of(6, 20)
    mix = Mix(0.3, torch.tensor([3, 0, 2, 5, 1, 4]), None) if changed == "mixed" else None
    loss = Loss(LossSettings(reshape=changed == "reshaped"), torch.linspace(0.5, 3.0, 20))
    found = []
    for min_classes in (0, 10**9):
        monkeypatch.setattr(loss_module, "MIN_CLASSES", min_classes)
        found.append(loss(student, rows, torch.arange(6), progress=1.0, mix=mix).per_sample)
    assert torch.equal(*found)


def test_infinite_logits_are_not_representable_by_any_codec():
    """A build refuses rows that are not representable, so no loss gets them."""
    logits = np.zeros((3, 4), dtype=np.float32)
    logits[1, 2] = -np.inf
    for kind in KINDS:
        assert make_codec(kind, 4).representable(logits).tolist() == [True, False, True]
