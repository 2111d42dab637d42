"""Losses of the user's own, through the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kdcache.cli import main
from kdcache.files import read_json
from tests.workspaces import copy_workspace, metrics, without_times

LOSSES = """
import torch
from torch import nn
from torch.nn import functional as F

def one_number(student, teacher, labels, context):
    T = context.temperature
    s, t = (student / T).log_softmax(1), (teacher / T).log_softmax(1)
    return T * T * F.kl_div(s, t, reduction="batchmean", log_target=True)

def per_sample(student, teacher, labels, context):
    T = context.temperature
    s, t = (student / T).log_softmax(1), (teacher / T).log_softmax(1)
    return T * T * (t.exp() * (t - s)).sum(1)

class Projected(nn.Module):
    needs_features = True

    def __init__(self, num_classes, num_features):
        super().__init__()
        self.head = nn.Linear(num_features, num_classes)

    def forward(self, student, teacher, labels, context):
        assert context.features.requires_grad and 0 <= context.progress <= 1
        assert not teacher.requires_grad
        return (self.head(context.features) - teacher).square().mean(dim=1)

def detached(student, teacher, labels, context):
    return (student.detach() - teacher).square().mean()

def wrong_shape(student, teacher, labels, context):
    return student
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder, which is not on Python's path."""
    name = f"losses_of_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(LOSSES)
    monkeypatch.chdir(tmp_path)
    return name


@pytest.fixture
def train(tiny_workspace, tiny_store, tmp_path):
    """Return a function that trains a student and returns its run folder."""
    workspace = copy_workspace(tiny_workspace, tmp_path / "workspace")

    def train(out: str, *words: str, status: int = 0) -> Path:
        common = ["--subset", "full", "--model", "resnet8", "--batch-size", "24", "--device", "cpu"]
        where = ["--store", str(workspace / "stores" / tiny_store.path.name)]
        where += ["--workspace", str(workspace), "--out", str(tmp_path / out), "--quiet"]
        assert main(["train", *common, *where, *words]) == status
        return tmp_path / out

    return train


def test_one_number_and_one_per_sample_train_as_kd_does(module, train):
    common = ["--epochs", "1", "--alpha", "0.9"]
    runs = [
        without_times(metrics(train(name, "--loss", loss, *common)))
        for name, loss in [
            ("kd", "kd"),
            ("one", f"{module}:one_number"),
            ("each", f"{module}:per_sample"),
        ]
    ]
    for run in runs[1:]:
        assert run[0]["distillation"] == pytest.approx(runs[0][0]["distillation"], rel=1e-4)
        assert run[0]["loss"] == pytest.approx(runs[0][0]["loss"], rel=1e-4)


def test_a_loss_with_parameters_on_features_is_trained_and_saved(module, train):
    loss = ["--loss", f"{module}:Projected", "--optimizer", "adamw", "--clip-norm", "1"]
    whole = train("whole", *loss, "--epochs", "2", "--ema", "0.9")
    weights = load_file(whole / "resume.safetensors")
    assert weights["loss/head.weight"].shape[0] == 4
    assert weights["loss_optimizer/head.weight/exp_avg"].abs().sum() > 0
    shorter = load_file(train("shorter", *loss, "--epochs", "1") / "resume.safetensors")
    # Both began with the same numbers.
    assert not torch.equal(shorter["loss/head.weight"], weights["loss/head.weight"])


def test_a_resumed_run_ends_with_the_same_loss_parameters(module, train, monkeypatch):
    loss = ["--loss", f"{module}:Projected", "--epochs", "2"]
    whole = load_file(train("whole", *loss) / "resume.safetensors")

    from kdcache.training.trainer import Trainer

    original = Trainer.train_epoch

    def stops(self, epoch):
        if epoch == 1:
            raise KeyboardInterrupt
        return original(self, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_epoch", stops)
        train("cut", *loss, status=1)
    resumed = load_file(train("cut", *loss, "--resume") / "resume.safetensors")
    for name in (
        "loss/head.weight",
        "loss/head.bias",
        "loss_optimizer/head.weight/momentum_buffer",
    ):
        torch.testing.assert_close(resumed[name], whole[name], rtol=0, atol=0)


def test_the_config_of_a_run_has_the_digest_of_the_code(module, train):
    folder = train("run", "--loss", f"{module}:one_number", "--epochs", "1")
    config = read_json(folder / "config.json")["config"]
    assert config["loss"] == f"{module}:one_number"
    assert len(config["loss_code_digest"]) == 64


def test_a_loss_of_another_shape_is_refused(module, train, capsys):
    train("run", "--loss", f"{module}:wrong_shape", "--epochs", "1", status=2)
    assert "expected a tensor of shape () or (24,)" in capsys.readouterr().err


@pytest.mark.parametrize("alpha", ["0.5", "1"])
def test_a_loss_without_a_gradient_is_refused(module, train, capsys, alpha):
    train("run", "--loss", f"{module}:detached", "--alpha", alpha, "--epochs", "1", status=2)
    assert "returned a tensor without a gradient" in capsys.readouterr().err
