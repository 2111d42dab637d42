"""The average of the weights, against a loop over plain numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdcache.training.averaging import WeightAverage


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(
        memory_format=torch.channels_last
    )


def moved(present: nn.Module, step: int) -> None:
    """Change every weight and every running statistic."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in present.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    present(torch.randn(2, 3, 5, 5, generator=generator))


@pytest.mark.parametrize("decay", [0.2, 0.9, 0.999])
def test_it_is_the_moving_average_of_weights_and_running_statistics(decay):
    present = model()
    average = WeightAverage(present, decay)
    expected: dict[str, torch.Tensor] = {}
    for step in range(30):
        moved(present, step)
        average.update(present)
        now = {name: value.double() for name, value in present.state_dict().items()}
        stay = min(decay, (1 + step) / (10 + step)) if step else 0.0
        expected = {
            name: stay * expected.get(name, value) + (1 - stay) * value
            for name, value in now.items()
        }
    found = average.model.state_dict()
    count = found.pop("1.num_batches_tracked")
    assert count == present.state_dict()["1.num_batches_tracked"] == 30
    for name, value in found.items():
        # 30 roundings to float32, each of half a unit in the last place.
        torch.testing.assert_close(value.double(), expected[name], rtol=2e-6, atol=2e-6, msg=name)
    assert average.steps == 30


def test_an_average_that_is_taken_up_goes_on_bit_for_bit():
    present = model()
    whole, taken_up = WeightAverage(present, 0.9), WeightAverage(present, 0.9)
    taken_up.update(present)  # whatever it was before
    for step in range(6):
        moved(present, step)
        whole.update(present)
        if step == 2:
            taken_up.model.load_state_dict(whole.model.state_dict())
            taken_up.resume_at(3)
        elif step > 2:
            taken_up.update(present)
    assert taken_up.steps == whole.steps == 6
    for name, value in taken_up.model.state_dict().items():
        assert torch.equal(value, whole.model.state_dict()[name]), name


def test_the_model_itself_stays_as_it_is():
    present, untouched = model(), model()
    average = WeightAverage(present, 0.9)
    for step in range(3):
        moved(present, step)
        moved(untouched, step)
        average.update(present)
    for name, value in present.state_dict().items():
        assert torch.equal(value, untouched.state_dict()[name])
    assert average.model[0].weight.stride() == present[0].weight.stride()
    assert not torch.equal(average.model[0].weight, present[0].weight)
