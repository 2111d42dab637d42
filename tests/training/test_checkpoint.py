"""A run that was stopped and taken up goes on bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from kdcache.errors import CacheMismatchError, WeightsError
from kdcache.training.averaging import WeightAverage
from kdcache.training.checkpoint import Checkpoint, Progress
from kdcache.training.optim import OptimSettings, make_optimizer
from kdcache.training.schedule import make_schedule

STEPS = 12
PROGRESS = Progress(
    epochs_done=2, top1_best=41.5, images_seen=144, train_seconds=3.25, teacher_forwards=7
)


class Run:
    """A small training run: convolution in channels-last, norm, dropout, an optimiser, schedule."""

    def __init__(
        self,
        path: Path,
        *,
        channels: int = 8,
        seed: int = 0,
        ema: float | None = None,
        about: dict[str, object] | None = None,
        **changes: object,
    ) -> None:
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, channels, 3),
            nn.BatchNorm2d(channels),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(36 * channels, 4),
        )
        self.model = model.to(memory_format=torch.channels_last)
        settings = OptimSettings(**{"lr": 0.1} | changes)
        self.optimizer = make_optimizer(self.model, settings)
        self.schedule = make_schedule(self.optimizer, settings, steps=STEPS)
        self.scaler = torch.amp.GradScaler("cpu", enabled=False)
        self.average = None if ema is None else WeightAverage(self.model, ema)
        self.checkpoint = Checkpoint(
            path, self.model, self.optimizer, self.schedule, self.scaler, self.average, about
        )

    def train(self, steps: range) -> None:
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            images = torch.randn(6, 3, 8, 8, generator=generator)
            logits = self.model(images.to(memory_format=torch.channels_last))
            loss = functional.cross_entropy(logits, torch.arange(6) % 4)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            if self.average:
                self.average.update(self.model)

    def tensors(self) -> dict[str, torch.Tensor]:
        kept = {
            f"{key} of {name}": value
            for name, parameter in self.model.named_parameters()
            for key, value in self.optimizer.state[parameter].items()
        }
        average = self.average.model.state_dict() if self.average else {}
        averaged = {f"average of {name}": value for name, value in average.items()}
        return self.model.state_dict() | kept | averaged


KINDS: dict[str, dict[str, object]] = {
    "sgd": {},
    "adamw": {"optimizer": "adamw", "schedule": "cosine", "warmup": 0.3, "ema": 0.9},
    "without momentum": {"momentum": 0.0, "schedule": "step", "ema": 0.5},
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("stopped_after", [1, 5, STEPS])
def test_a_run_that_is_taken_up_goes_on_bit_for_bit(tmp_path, stopped_after, kind):
    stopped = Run(tmp_path / "resume.safetensors", **kind)
    stopped.train(range(stopped_after))
    stopped.checkpoint.save(PROGRESS)
    undisturbed = Run(tmp_path / "undisturbed", **kind)
    undisturbed.train(range(STEPS))
    taken_up = Run(tmp_path / "resume.safetensors", seed=1, **kind)
    torch.rand(17)  # whatever else happened in the new process
    assert taken_up.checkpoint.load() == PROGRESS
    taken_up.train(range(stopped_after, STEPS))

    expected = undisturbed.tensors()
    assert taken_up.tensors().keys() == expected.keys()
    for name, value in taken_up.tensors().items():
        assert torch.equal(value, expected[name]), name
    assert taken_up.schedule.get_last_lr() == undisturbed.schedule.get_last_lr()


@pytest.mark.parametrize(
    ("optimizer", "key"),
    [("sgd", "momentum_buffer"), ("adamw", "exp_avg"), ("adamw", "exp_avg_sq")],
)
def test_what_is_kept_of_a_parameter_comes_back_in_its_memory_format(tmp_path, optimizer, key):
    stopped = Run(tmp_path / "resume.safetensors", optimizer=optimizer)
    stopped.train(range(2))
    stopped.checkpoint.save(PROGRESS)
    taken_up = Run(tmp_path / "resume.safetensors", optimizer=optimizer)
    taken_up.checkpoint.load()
    weight = taken_up.model[0].weight
    assert taken_up.optimizer.state[weight][key].stride() == weight.stride()


def test_a_run_without_an_evaluation_split_has_no_best_accuracy(tmp_path):
    run = Run(tmp_path / "resume.safetensors")
    run.train(range(1))
    progress = PROGRESS._replace(top1_best=None)
    run.checkpoint.save(progress)
    assert run.checkpoint.load() == progress


def test_a_checkpoint_exists_when_it_was_saved(tmp_path):
    run = Run(tmp_path / "resume.safetensors")
    assert not run.checkpoint.exists()
    run.checkpoint.save(PROGRESS)
    assert run.checkpoint.exists()


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    run = Run(tmp_path / "resume.safetensors")
    run.train(range(1))
    run.checkpoint.save(PROGRESS)
    with pytest.raises(WeightsError, match=r"\(8, 3, 3, 3\), expected \(16, 3, 3, 3\)"):
        Run(tmp_path / "resume.safetensors", channels=16).checkpoint.load()


@pytest.mark.parametrize(
    ("changes", "value"),
    [
        ({"optimizer": "adamw"}, "optimizer is 'AdamW', found 'SGD'"),
        ({"schedule": "cosine"}, "schedule is 'CosineAnnealingLR', found 'OneCycleLR'"),
        ({"ema": 0.9}, r"ema is 0\.9, found None"),
        ({"about": {"arch": "resnet20"}}, "arch is 'resnet20', found 'resnet8'"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_and_says_what_differs(tmp_path, changes, value):
    path = tmp_path / "resume.safetensors"
    run = Run(path, about={"arch": "resnet8"})
    run.train(range(1))
    run.checkpoint.save(PROGRESS)
    other = Run(path, **{"about": {"arch": "resnet8"}} | changes)
    before = [value.clone() for value in other.model.state_dict().values()]
    with pytest.raises(CacheMismatchError, match=rf"resume\.safetensors is .*another run: {value}"):
        other.checkpoint.load()
    after = other.model.state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_torn_checkpoint_is_refused(tmp_path):
    run = Run(tmp_path / "resume.safetensors")
    run.train(range(1))
    run.checkpoint.save(PROGRESS)
    path = tmp_path / "resume.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"resume\.safetensors is not readable"):
        run.checkpoint.load()


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"resume\.safetensors"):
        Run(tmp_path / "resume.safetensors").checkpoint.load()
