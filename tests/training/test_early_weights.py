"""Early weights of a teacher: exact, whatever stopped the run, and teachers of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdcache.errors import CacheMismatchError, ConfigError
from kdcache.models.weights import load_weights
from kdcache.options import BuildLogitsOptions, TrainTeacherOptions
from kdcache.store.build.build import build_logits
from kdcache.training.train_teacher import train_teacher
from kdcache.training.trainer import Trainer
from tests.workspaces import copy_workspace


def options(workspace: Path, **others: Any) -> TrainTeacherOptions:
    given = {"model": "resnet8", "epochs": 3, "device": "cpu", "schedule": "constant"}
    return TrainTeacherOptions(workspace=workspace, **(given | others))


def teacher(workspace: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    weights, about = load_weights(workspace / f"teachers/{name}.safetensors")
    return {key: value.numpy().tobytes() for key, value in weights.items()}, about


def test_they_are_those_of_a_run_that_ends_there(tiny_workspace, tmp_path):
    """At a constant rate the first epochs of a run are a shorter run."""
    whole = copy_workspace(tiny_workspace, tmp_path / "whole")
    found = train_teacher(options(whole, save_epochs="1,2", name="mine")).to_json()
    for epochs in (1, 2):
        alone = copy_workspace(tiny_workspace, tmp_path / f"alone{epochs}")
        result = train_teacher(options(alone, epochs=epochs)).to_json()
        weights, about = teacher(whole, f"mine-epoch{epochs}")
        assert weights == teacher(alone, "resnet8")[0]
        assert (about["top1"], about["epoch"]) == (result["top1"], epochs)
        assert about["digest"] == teacher(alone, "resnet8")[1]["digest"]
    assert Path(found["path"]).name == "mine.safetensors"
    built = build_logits(
        BuildLogitsOptions(teacher="mine-epoch2", views=0, device="cpu", workspace=whole)
    ).to_json()
    assert built["val_quality"]["top1"] == pytest.approx(about["top1"])
    with pytest.raises(CacheMismatchError, match=r"mine-epoch3.* overwrite"):
        train_teacher(options(whole, save_epochs="1,3", name="mine"))


def test_a_run_that_was_stopped_keeps_the_same(tiny_workspace, tmp_path, monkeypatch):
    undisturbed = copy_workspace(tiny_workspace, tmp_path / "undisturbed")
    train_teacher(options(undisturbed, save_epochs="1,2"))
    train_epoch = Trainer.train_epoch
    for stopped_before in (1, 2):
        stopped = copy_workspace(tiny_workspace, tmp_path / f"stopped{stopped_before}")

        def stop(self: Trainer, epoch: int, before: int = stopped_before) -> dict[str, Any]:
            if epoch == before:
                raise KeyboardInterrupt
            return train_epoch(self, epoch)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "train_epoch", stop)
            with pytest.raises(KeyboardInterrupt):
                train_teacher(options(stopped, save_epochs="1,2"))
        train_teacher(options(stopped, save_epochs="1,2"))
        for name in ("resnet8-epoch1", "resnet8-epoch2", "resnet8"):
            assert teacher(stopped, name) == teacher(undisturbed, name)


def test_a_run_that_lacks_one_is_begun_anew(tiny_workspace, tmp_path, monkeypatch):
    workspace = copy_workspace(tiny_workspace, tmp_path / "workspace")
    train_epoch = Trainer.train_epoch

    def stop(self: Trainer, epoch: int) -> dict[str, Any]:
        if epoch == 2:
            raise KeyboardInterrupt
        return train_epoch(self, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            train_teacher(options(workspace))
    train_teacher(options(workspace, save_epochs="1"))
    assert teacher(workspace, "resnet8-epoch1")[1]["epoch"] == 1


def test_an_epoch_after_the_last_is_refused(tiny_workspace, tmp_path):
    workspace = copy_workspace(tiny_workspace, tmp_path / "workspace")
    with pytest.raises(ConfigError, match=r"save_epochs=2,4: expected epochs up to the last, 3"):
        train_teacher(options(workspace, save_epochs="2,4"))
