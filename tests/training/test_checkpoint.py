"""A run that was stopped and taken up goes on bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from kdcache.errors import TeacherError
from kdcache.training.checkpoint import Checkpoint, Progress
from kdcache.training.optim import make_optimizer, make_schedule

STEPS = 12
PROGRESS = Progress(
    epochs_done=2, top1_best=41.5, images_seen=144, train_seconds=3.25, teacher_forwards=7
)


class Run:
    """A small training run: convolution in channels-last, norm, dropout, momentum, schedule."""

    def __init__(self, path: Path, *, channels: int = 8, seed: int = 0) -> None:
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, channels, 3),
            nn.BatchNorm2d(channels),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(36 * channels, 4),
        )
        self.model = model.to(memory_format=torch.channels_last)
        self.optimizer = make_optimizer(self.model, lr=0.1)
        self.schedule = make_schedule(self.optimizer, lr=0.1, steps=STEPS)
        self.scaler = torch.amp.GradScaler("cpu", enabled=False)
        self.checkpoint = Checkpoint(path, self.model, self.optimizer, self.schedule, self.scaler)

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

    def tensors(self) -> dict[str, torch.Tensor]:
        momentum = {
            f"momentum of {name}": self.optimizer.state[parameter]["momentum_buffer"]
            for name, parameter in self.model.named_parameters()
        }
        return self.model.state_dict() | momentum


@pytest.mark.parametrize("stopped_after", [1, 5, STEPS])
def test_a_run_that_is_taken_up_goes_on_bit_for_bit(tmp_path, stopped_after):
    stopped = Run(tmp_path / "resume.safetensors")
    stopped.train(range(stopped_after))
    stopped.checkpoint.save(PROGRESS)
    undisturbed = Run(tmp_path / "undisturbed")
    undisturbed.train(range(STEPS))
    taken_up = Run(tmp_path / "resume.safetensors", seed=1)
    torch.rand(17)  # whatever else happened in the new process
    assert taken_up.checkpoint.load() == PROGRESS
    taken_up.train(range(stopped_after, STEPS))

    expected = undisturbed.tensors()
    assert taken_up.tensors().keys() == expected.keys()
    for name, value in taken_up.tensors().items():
        assert torch.equal(value, expected[name]), name
    assert taken_up.schedule.get_last_lr() == undisturbed.schedule.get_last_lr()


def test_momentum_comes_back_in_the_memory_format_of_its_parameter(tmp_path):
    stopped = Run(tmp_path / "resume.safetensors")
    stopped.train(range(2))
    stopped.checkpoint.save(PROGRESS)
    taken_up = Run(tmp_path / "resume.safetensors")
    taken_up.checkpoint.load()
    weight = taken_up.model[0].weight
    assert taken_up.optimizer.state[weight]["momentum_buffer"].stride() == weight.stride()


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
    with pytest.raises(TeacherError, match=r"\(8, 3, 3, 3\), expected \(16, 3, 3, 3\)"):
        Run(tmp_path / "resume.safetensors", channels=16).checkpoint.load()


def test_a_torn_checkpoint_is_refused(tmp_path):
    run = Run(tmp_path / "resume.safetensors")
    run.train(range(1))
    run.checkpoint.save(PROGRESS)
    path = tmp_path / "resume.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(TeacherError, match=r"resume\.safetensors is not readable"):
        run.checkpoint.load()


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"resume\.safetensors"):
        Run(tmp_path / "resume.safetensors").checkpoint.load()
