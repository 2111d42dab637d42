"""The first loss that is no number is named, with its step and its samples."""

from __future__ import annotations

import weakref

import pytest
import torch

from kdcache.errors import TrainingError
from kdcache.training.finite import CHECK_EVERY, FiniteWatch

NAN, INF = float("nan"), float("inf")


def note(watch: FiniteWatch, step: int, value: float, ids: list[int]) -> None:
    watch.add(step, torch.tensor(value, device="cpu", requires_grad=True), torch.tensor(ids))


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_on_a_cpu_the_batch_is_named_at_once(value):
    watch = FiniteWatch(torch.device("cpu"), "Try this.")
    note(watch, 1, 0.5, [1, 2])
    with pytest.raises(TrainingError, match=rf"step 2 is {value}.* 30, 10, 20\. Try this\."):
        note(watch, 2, value, [30, 10, 20])


@pytest.mark.parametrize(("count", "more"), [(8, ""), (9, " and 1 more"), (10, " and 2 more")])
def test_of_many_samples_some_are_named_and_the_others_counted(count, more):
    watch = FiniteWatch(torch.device("cpu"), "")
    with pytest.raises(TrainingError, match=rf"samples are 0, 1, 2, 3, 4, 5, 6, 7{more}\."):
        note(watch, 9, NAN, list(range(count)))


def test_elsewhere_it_is_looked_at_now_and_then_and_the_first_is_named():
    """The device decides how often; the tensors of this test are on the host all the same."""
    watch = FiniteWatch(torch.device("cuda"), "")
    for step in range(1, CHECK_EVERY):
        note(watch, step, NAN if step in (7, 9) else 1.0, [step])
    with pytest.raises(TrainingError, match=r"step 7 is nan.* are 7\."):
        note(watch, CHECK_EVERY, 1.0, [0])


class Held(torch.autograd.Function):
    """Keeps a tensor for its gradient, as every layer does."""

    @staticmethod
    def forward(ctx, values, kept):
        ctx.kept = kept
        return values.sum()

    @staticmethod
    def backward(_, grad):
        return grad.expand(2), None


def test_a_loss_that_waits_does_not_hold_what_its_gradient_needed():
    watch = FiniteWatch(torch.device("cuda"), "")
    activations = torch.zeros(4)
    gone = weakref.ref(activations)
    loss = Held.apply(torch.ones(2, requires_grad=True), activations)
    watch.add(1, loss, torch.tensor([0]))
    del loss, activations
    assert gone() is None


def test_what_is_left_at_the_end_of_an_epoch_is_looked_at_too():
    watch = FiniteWatch(torch.device("cuda"), "")
    note(watch, 1, INF, [4])
    with pytest.raises(TrainingError, match="step 1 is inf"):
        watch.check()
    watch.check()  # it was told once
