"""The rate of each step, against formulas written out here, and after a stop."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kdcache.training.optim import OptimSettings, make_optimizer
from kdcache.training.schedule import (
    load_schedule,
    make_schedule,
    schedule_state,
)

LR = 0.2


class Run:
    """An optimiser and its schedule."""

    def __init__(self, steps: int, **changes: object) -> None:
        given = OptimSettings(**{"lr": LR} | changes)
        self.optimizer = make_optimizer(nn.Linear(2, 2), given)
        self.schedule = make_schedule(self.optimizer, given, steps=steps)

    def rates(self, steps: int) -> list[float]:
        """The rate of each step, as the optimiser has it when it is taken."""
        found = []
        for _ in range(steps):
            assert len({group["lr"] for group in self.optimizer.param_groups}) == 1
            assert self.schedule.get_last_lr()[0] == self.optimizer.param_groups[0]["lr"]
            found.append(self.optimizer.param_groups[0]["lr"])
            self.optimizer.step()
            self.schedule.step()
        return found


def rates(steps: int, **changes: object) -> list[float]:
    return Run(steps, **changes).rates(steps)


@pytest.mark.parametrize("share", [None, 0.3])
@pytest.mark.parametrize("steps", [20, 100, 1000])
def test_one_cycle_warms_up_to_its_peak_and_falls_to_nearly_0(steps, share):
    found = rates(steps, warmup=share)
    peak = found.index(max(found))
    torch.testing.assert_close(found[peak], LR, rtol=1e-2, atol=0)
    assert abs(peak - ((share or 0.15) * steps - 1)) <= 1
    assert found[: peak + 1] == sorted(found[: peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)
    torch.testing.assert_close(found[0], LR / 25, rtol=1e-12, atol=0)
    assert found[-1] <= LR * 1e-5


def test_a_schedule_leaves_the_momentum_alone():
    run = Run(20, momentum=0.8)
    for _ in range(20):
        assert {group["momentum"] for group in run.optimizer.param_groups} == {0.8}
        run.rates(1)


def warm_up(rising: int) -> list[float]:
    return [LR * (step + 1) / (rising + 1) for step in range(rising)]


@pytest.mark.parametrize(
    ("share", "rising"), [(None, 0), (0.0, 0), (0.033, 2), (0.1, 5), (0.5, 25)]
)
def test_cosine_falls_as_half_a_cosine(share, rising):
    left = 50 - rising
    expected = warm_up(rising)
    expected += [LR * (1 + math.cos(math.pi * step / left)) / 2 for step in range(left)]
    # torch works from step to step: an error of a few 1e-16 grows where the rate nears 0.
    torch.testing.assert_close(
        rates(50, schedule="cosine", warmup=share), expected, rtol=1e-10, atol=1e-15
    )


@pytest.mark.parametrize(("share", "rising"), [(None, 0), (0.1, 5)])
def test_constant_stays_after_the_warm_up(share, rising):
    expected = warm_up(rising) + [LR] * (50 - rising)
    torch.testing.assert_close(
        rates(50, schedule="constant", warmup=share), expected, rtol=1e-12, atol=0
    )


@pytest.mark.parametrize(
    ("milestones", "gamma", "share"),
    [((), None, None), ((0.3, 0.6, 0.9), 0.5, None), ((0.5,), None, 0.1)],
)
def test_step_falls_by_a_factor_at_each_milestone(milestones, gamma, share):
    rising = round(50 * (share or 0))
    expected = warm_up(rising)
    for step in range(rising, 50):
        # As He et al. 2016: a tenth from 32,000 of 64,000 steps on, and from 48,000 on.
        passed = sum(step >= round(place * 50) for place in milestones or (0.5, 0.75))
        expected.append(LR * (gamma or 0.1) ** passed)
    found = rates(50, schedule="step", warmup=share, milestones=milestones, gamma=gamma)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("steps", "share"), [(2, 0.5), (10, 0.1), (4, 0.25)])
def test_one_cycle_may_warm_up_for_exactly_one_step(steps, share):
    found = rates(steps, warmup=share)
    torch.testing.assert_close(found[0], LR, rtol=1e-6, atol=0)
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_warm_up_may_take_all_steps(schedule, steps):
    torch.testing.assert_close(
        rates(steps, schedule=schedule, warmup=0.9), warm_up(steps), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "step", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_even_a_run_of_few_steps_has_a_schedule(schedule, steps):
    found = rates(steps, schedule=schedule, warmup=0.4)
    assert all(0 < rate <= LR for rate in found)
    if schedule == "one-cycle":
        assert max(found) > LR / 2 or steps == 3  # with a warm-up of one of three steps


@settings(deadline=None, max_examples=60)
@given(
    schedule=st.sampled_from(["one-cycle", "cosine", "step", "constant"]),
    steps=st.integers(2, 40),
    share=st.sampled_from([None, 0.1, 0.5]),
    data=st.data(),
)
def test_a_schedule_that_is_taken_up_goes_on_bit_for_bit(schedule, steps, share, data):
    stop = data.draw(st.integers(1, steps - 1))
    given = {"schedule": schedule, "warmup": share}
    expected = rates(steps, **given)
    stopped = Run(steps, **given)
    before = stopped.rates(stop)
    state = json.loads(json.dumps(schedule_state(stopped.schedule)))
    taken_up = Run(steps, **given)
    for group, old in zip(
        taken_up.optimizer.param_groups, stopped.optimizer.param_groups, strict=True
    ):
        group["lr"] = old["lr"]
    load_schedule(taken_up.schedule, state)
    assert before + taken_up.rates(steps - stop) == expected
