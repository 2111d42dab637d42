"""Optimiser, schedule and defaults."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdcache.teacher.models import make_model
from kdcache.training.optim import (
    MOMENTUM,
    WARM_UP_SHARE,
    WEIGHT_DECAY,
    default_batch_size,
    default_epochs,
    default_lr,
    make_optimizer,
    make_schedule,
)


def learning_rates(*, lr: float, steps: int) -> list[float]:
    """The rate of each step, as the optimiser has it when it is taken."""
    model = nn.Linear(2, 2)
    optimizer = make_optimizer(model, lr=lr)
    schedule = make_schedule(optimizer, lr=lr, steps=steps)
    found = []
    for _ in range(steps):
        assert len({group["lr"] for group in optimizer.param_groups}) == 1
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2"])
def test_norms_and_biases_are_not_decayed_and_all_else_is(name):
    model = make_model(name, num_classes=4, image_size=32)
    decay = {
        id(parameter): group["weight_decay"]
        for group in make_optimizer(model, lr=0.1).param_groups
        for parameter in group["params"]
    }
    assert len(decay) == len(list(model.parameters()))
    for module in model.modules():
        for kind, parameter in module.named_parameters(recurse=False):
            decayed = isinstance(module, (nn.Conv2d, nn.Linear)) and kind == "weight"
            assert decay[id(parameter)] == (WEIGHT_DECAY if decayed else 0)


def test_a_step_is_sgd_with_nesterov_momentum():
    weight = nn.Parameter(torch.tensor([[1.0]], dtype=torch.float64))
    model = nn.Module()
    model.weight = weight
    optimizer = make_optimizer(model, lr=0.5)
    value, momentum = 1.0, 0.0
    for gradient in (0.3, -0.2, 0.1):
        weight.grad = torch.tensor([[gradient]], dtype=torch.float64)
        optimizer.step()
        # torch starts the buffer at the first gradient; from zero that is the same.
        decayed = gradient + WEIGHT_DECAY * value
        momentum = MOMENTUM * momentum + decayed
        value -= 0.5 * (decayed + MOMENTUM * momentum)
        torch.testing.assert_close(weight.item(), value, rtol=1e-14, atol=0)


@pytest.mark.parametrize("steps", [20, 100, 1000])
def test_the_rate_warms_up_to_its_peak_and_falls_to_nearly_0(steps):
    rates = learning_rates(lr=0.2, steps=steps)
    peak = rates.index(max(rates))
    torch.testing.assert_close(rates[peak], 0.2, rtol=1e-2, atol=0)
    assert abs(peak - (WARM_UP_SHARE * steps - 1)) <= 1
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    torch.testing.assert_close(rates[0], 0.2 / 25, rtol=1e-12, atol=0)
    assert rates[-1] <= 0.2 * 1e-5


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_even_a_run_of_few_steps_has_a_schedule(steps):
    rates = learning_rates(lr=0.1, steps=steps)
    assert all(0 < rate <= 0.1 for rate in rates)
    assert max(rates) > 0.05


@pytest.mark.parametrize(("num_samples", "expected"), [(1, 32), (4_999, 32), (5_000, 128)])
def test_small_sets_get_small_batches(num_samples, expected):
    assert default_batch_size(num_samples) == expected


def test_the_rate_is_in_proportion_to_the_batch():
    assert default_lr(128, "resnet8") == 0.1
    assert default_lr(32, "resnet56") == 0.025
    assert default_lr(256, "resnet50") == 0.04


@pytest.mark.parametrize(
    ("num_samples", "batch_size", "expected"),
    [(50_000, 128, 30), (1_000, 32, 47), (32, 32, 1_500), (33, 32, 750), (1, 32, 1_500)],
)
def test_small_sets_get_more_epochs(num_samples, batch_size, expected):
    found = default_epochs(num_samples, batch_size, least_epochs=30, least_steps=1_500)
    assert found == expected
