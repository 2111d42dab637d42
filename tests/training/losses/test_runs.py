"""The loss inside a run: what a loop hands to it, what `kdcache train` makes of its options."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from kdcache.data.beton import open_beton
from kdcache.errors import CacheMismatchError, ConfigError
from kdcache.options import BuildLogitsOptions, TrainOptions
from kdcache.progress import logger
from kdcache.selection.subset import Subset
from kdcache.store.build.build import build_logits
from kdcache.training.losses.loss import Loss
from kdcache.training.losses.settings import LossSettings
from kdcache.training.train import train
from kdcache.workspace import Workspace
from tests.training.loops import DisturbedLoader, Killed, Parts, assert_same_run, run, student
from tests.workspaces import copy_workspace, metrics


def settings_of(**options: object) -> LossSettings:
    return LossSettings.of(TrainOptions(**options))


@pytest.mark.parametrize(
    ("accumulate", "progress"),
    [(1, [0.25, 0.625, 1.0]), (2, [0.2, 0.6, 1.0]), (3, [0.0, 0.5, 1.0])],
)
def test_alpha_follows_the_optimiser_steps(
    parts: Parts, tmp_path: Path, accumulate: int, progress: list[float]
):
    """Three epochs of three batches, so of three, two or one step; the last step of each counts."""
    loss = settings_of(alpha="linear(0.9, 0.1)")
    run(parts, tmp_path / "run", loss=loss, accumulate=accumulate, evaluate=False)
    found = [line["alpha"] for line in metrics(tmp_path / "run")]
    assert found == pytest.approx([0.9 - 0.8 * point for point in progress], abs=1e-12)


def test_a_run_of_one_step_uses_the_start_of_alpha(parts: Parts, tmp_path: Path):
    loss = settings_of(alpha="linear(0.9, 0.1)")
    run(parts, tmp_path / "run", loss=loss, accumulate=3, epochs=1, evaluate=False)
    assert [line["alpha"] for line in metrics(tmp_path / "run")] == [0.9]


@pytest.mark.parametrize(
    "options",
    [
        {"mixup": 1.0, "seed": 4},
        {"cutmix": 1.0, "label_smoothing": 0.1},
        {"loss": "dkd(warm_up=0.9)", "alpha": "linear(0.2, 0.9)"},
        {"loss": "dist", "mixup": 0.5, "cutmix": 0.5},
        {"reshape": True},
        {"standardise": True, "alpha": 1.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("has_teacher", [True, False])
def test_the_training_loop_computes_the_loss_of_the_mixed_batch(
    parts: Parts, tmp_path: Path, options: dict[str, object], has_teacher: bool
):
    """With a rate of nearly 0, the whole first epoch is that of the untrained student."""
    loader = parts.loader if has_teacher else parts.plain_loader
    settings = settings_of(**options)
    if settings.reshape and not has_teacher:
        with pytest.raises(ConfigError, match="reshape is on without a store"):
            run(parts, tmp_path, loader=loader, loss=settings)
        return
    run(parts, tmp_path / "run", loader=loader, loss=settings, epochs=1, lr=1e-30, evaluate=False)
    (line,) = metrics(tmp_path / "run")

    constants = torch.from_numpy(parts.loader.store.reshaping_constants()).float()
    loss = Loss(settings, constants)
    model = student().train()
    torch.manual_seed(0)
    student()  # the generator stands where the run's stood
    found = []
    for number, batch in enumerate(loader.epoch(0)):
        images, mix = parts.normalise(batch.images), None
        if settings.mixer is not None:
            mix = settings.mixer.draw(images, epoch=0, batch=number)
            images = mix.images(images)
        logits = model(images)
        one = loss(logits, batch.rows, batch.labels, progress=number / 2, mix=mix)
        found.append((len(batch.labels), one.total.item(), one.cross_entropy.item()))
    sizes, totals, cross_entropies = zip(*found, strict=True)
    assert line["loss"] == pytest.approx(np.average(totals, weights=sizes), rel=1e-5)
    assert line["cross_entropy"] == pytest.approx(
        np.average(cross_entropies, weights=sizes), rel=1e-5
    )
    assert line["alpha"] == (one.alpha if has_teacher else None)


@pytest.mark.parametrize("step", [1, 4, 7])
def test_a_mixed_run_stopped_at_any_step_resumes_to_the_same_student(
    parts: Parts, tmp_path: Path, step: int
):
    loss = settings_of(mixup=0.4, cutmix=1.0, alpha="cosine(1, 0.5)")
    run(parts, tmp_path / "whole", loss=loss)

    def disturb(number: int) -> None:
        if number == step:
            raise Killed

    with pytest.raises(Killed):
        run(parts, tmp_path / "run", loader=DisturbedLoader(parts.loader, disturb), loss=loss)
    run(parts, tmp_path / "run", loss=loss, resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


# `kdcache train`


@pytest.fixture(scope="module")
def prepared(tiny_store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with 50 of 72 samples selected. Read only."""
    workspace = tmp_path_factory.mktemp("losses") / "workspace"
    copy_workspace(tiny_store.path.parents[1], workspace)
    data = {"data_fingerprint": open_beton(workspace / "train.beton").manifest.fingerprint}
    Subset(np.arange(5, 55), data).save(workspace / "subsets/fifty.npz")
    Workspace(workspace).remember("subset", workspace / "subsets/fifty.npz")
    Workspace(workspace).remember("store", workspace / "stores/projection.zarr")
    return workspace


@pytest.fixture
def workspace(prepared: Path, tmp_path: Path) -> Path:
    """A copy to write to."""
    return copy_workspace(prepared, tmp_path / "workspace")


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """What the package says."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    before = logger.handlers, logger.level
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    yield found
    logger.handlers = before[0]
    logger.setLevel(before[1])


def options(workspace: Path, **changes: object) -> TrainOptions:
    return TrainOptions(**{"workspace": workspace, "epochs": 1, "num_workers": 1} | changes)


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def config_of(result: dict[str, object]) -> dict[str, object]:
    return json.loads(Path(str(result["path"]), "config.json").read_text())["config"]


def test_a_run_logs_its_loss_and_records_it_in_its_config(workspace, messages):
    asked = {
        "loss": "dist(gamma=1)",
        "alpha": "linear(0.9, 0.5)",
        "temperature": 2.0,
        "label_smoothing": 0.1,
        "cutmix": 1.0,
    }
    result = train(options(workspace, **asked)).to_json()
    words = "dist(beta=2, gamma=1), alpha linear(0.9, 0.5), T 2, label smoothing 0.1, cutmix 1, "
    assert sum(words in message for message in messages) == 1
    others = {"reshape": False, "standardise": False, "mixup": None}
    expected = asked | others | {"loss": "dist(beta=2, gamma=1)"}
    config = config_of(result)
    assert {name: config[name] for name in expected} == expected
    with pytest.raises(CacheMismatchError, match=r"alpha is 'linear\(0\.9, 0\.4\)', found 'linear"):
        train(options(workspace, **asked | {"alpha": "linear(0.9, 0.4)"}, resume=True))
    with pytest.raises(CacheMismatchError, match=r"cutmix is None, found 1\.0"):
        train(options(workspace, **asked | {"cutmix": None}, resume=True))


def test_auto_depends_on_keep_and_is_logged_as_a_placeholder(workspace, messages):
    result = train(options(workspace, alpha="auto")).to_json()
    expected = 1 - 50 / 72 / 2
    assert config_of(result)["alpha"] == expected
    assert metrics(result["path"])[0]["alpha"] == expected
    assert any("1 - keep / 2, a placeholder" in message for message in messages)
    assert any(f"kd, alpha {expected}, T 4, " in message for message in messages)
    full = train(options(workspace, alpha="auto", subset="full")).to_json()
    assert config_of(full)["alpha"] == 0.5


def test_without_a_teacher_label_smoothing_and_mixing_still_apply(workspace, messages):
    train(options(workspace, kd=False, label_smoothing=0.1, mixup=0.2))
    words = "labels alone, label smoothing 0.1, mixup 0.2, no KD"
    assert sum(words in message for message in messages) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "dkd"}, "loss=dkd: expected kd=True with it"),
        ({"alpha": 0.5}, r"alpha=0\.5: expected kd"),
        ({"temperature": 2.0}, r"temperature=2\.0: expected kd"),
        ({"standardise": True}, "standardise=True: expected kd"),
        ({"reshape": True}, "reshape=True is given with kd=False"),
    ],
)
def test_options_of_distillation_are_refused_without_a_teacher(changes, message):
    with pytest.raises(ConfigError, match=message):
        TrainOptions(kd=False, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "kl"}, "loss=kl"),
        ({"alpha": 1.5}, r"alpha=1\.5"),
        ({"alpha": "linear(1)"}, "at character 10"),
        ({"loss": "dkd", "mixup": 1.0}, "mixup is given with loss dkd"),
        ({"standardise": True, "reshape": True}, "reshape=True is given with standardise=True"),
        ({"mixup": -1.0}, r"mixup=-1\.0"),
    ],
)
def test_an_invalid_loss_is_refused_before_anything_is_read(
    tmp_path, monkeypatch, changes, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        train(TrainOptions(workspace=Path("nothing-is-there"), **changes))
    assert files(tmp_path) == []


def test_sampled_rows_are_refused_for_other_losses_before_anything_is_written(workspace):
    build_logits(
        BuildLogitsOptions(
            teacher="tests.teachers:projection",
            workspace=workspace,
            views=1,
            codec="sampled(draws=20, temperature=4)",
            batch_size=8,
            device="cpu",
            store=str(workspace / "stores/drawn.zarr"),
        )
    )
    before = files(workspace)
    with pytest.raises(ConfigError, match=r"loss dkd is given with .*drawn\.zarr, whose rows"):
        train(options(workspace, teacher="drawn", loss="dkd"))
    assert files(workspace) == before
    assert train(options(workspace, teacher="drawn", mixup=0.2)).to_json()["top1"] is not None
