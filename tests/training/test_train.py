"""The loop and its two commands: what a run leaves behind, and how it is taken up."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from torch import nn

from kdcache.data.beton import open_beton
from kdcache.errors import CacheMismatchError, ConfigError, TrainingError
from kdcache.loader.distill import Batch, DistillLoader
from kdcache.options import BuildLogitsOptions, TrainOptions, TrainTeacherOptions
from kdcache.progress import logger
from kdcache.selection.subset import Subset
from kdcache.store.build import build_logits
from kdcache.teacher.forward import Normalise
from kdcache.teacher.models import make_model
from kdcache.teacher.weights import load_weights
from kdcache.training.evaluate import Evaluator
from kdcache.training.train import train
from kdcache.training.train_teacher import train_teacher
from kdcache.training.trainer import Trainer, TrainResult, TrainSettings
from kdcache.workspace import Workspace
from tests.spelled import write_spelled_store
from tests.store.conftest import change_manifest
from tests.teachers import projection
from tests.workspaces import copy_workspace, metrics, without_times

EPOCHS = 3
NUM_SAMPLES = 40


class Parts:
    """What trainers are made of, once for all tests: a loader compiles for a second."""

    def __init__(self, workspace: Path, store: Path) -> None:
        beton = open_beton(workspace / "train.beton")
        self.normalise = Normalise(beton.manifest.mean, beton.manifest.std)
        subset = range(3, 3 + NUM_SAMPLES)
        self.loader = DistillLoader(beton, store, subset, batch_size=16, num_workers=1)
        self.plain_loader = DistillLoader(beton, None, subset, batch_size=16, num_workers=1)
        self.evaluator = Evaluator(
            workspace / "val.beton",
            self.loader.views,
            classes=4,
            normalise=self.normalise,
            device=self.loader.device,
            precision="fp32",
            num_workers=1,
        )


@pytest.fixture(scope="module")
def parts(tiny_workspace: Path, tiny_store) -> Iterator[Parts]:
    parts = Parts(tiny_workspace, tiny_store.path)
    yield parts
    parts.loader.close()
    parts.plain_loader.close()


def student() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(128, 4),
    )


def run(
    parts: Parts,
    run_dir: Path,
    *,
    loader: object = None,
    evaluate: bool = True,
    epochs: int = EPOCHS,
    lr: float = 0.05,
    resume: bool = False,
) -> TrainResult:
    """Train from one fixed start; what a checkpoint brings back is changed before."""
    run_dir.mkdir(exist_ok=True)
    model = student()
    if resume and (run_dir / "resume.safetensors").exists():
        torch.manual_seed(99)
    trainer = Trainer(
        model,
        loader or parts.loader,
        parts.evaluator if evaluate else None,
        TrainSettings(epochs=epochs, lr=lr, alpha=0.9, temperature=4.0, precision="fp32"),
        normalise=parts.normalise,
        run_dir=run_dir,
        about={"arch": "small"},
    )
    return trainer.run(resume=resume)


class Killed(BaseException):
    """Stands for the end of the process: nothing in the package may catch it."""


class DisturbedLoader:
    """A loader that calls `disturb` with the number of each batch before it hands it out."""

    def __init__(self, loader: DistillLoader, disturb) -> None:
        self._loader = loader
        self._disturb = disturb
        self._count = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        with closing(self._loader.epoch(epoch)) as batches:
            for batch in batches:
                self._disturb(self._count)
                self._count += 1
                yield batch


@pytest.fixture(scope="module")
def undisturbed(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("undisturbed")
    run(parts, run_dir)
    return run_dir


def assert_same_run(found: Path, expected: Path) -> None:
    assert without_times(metrics(found)) == without_times(metrics(expected))
    for name in ("last", "best", "resume"):
        tensors, _ = load_weights(found / f"{name}.safetensors")
        wanted, _ = load_weights(expected / f"{name}.safetensors")
        assert tensors.keys() == wanted.keys()
        for key, value in tensors.items():
            assert torch.equal(value, wanted[key]), (name, key)


def test_a_run_says_what_each_epoch_came_to(undisturbed):
    lines = metrics(undisturbed)
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert set(line) == {
            *("epoch", "loss", "cross_entropy", "distillation", "top1", "top5"),
            *("lr", "images_per_second", "seconds"),
        }
        expected = 0.1 * line["cross_entropy"] + 0.9 * line["distillation"]
        assert line["loss"] == pytest.approx(expected, rel=1e-5)
        expected = NUM_SAMPLES / line["seconds"]
        assert line["images_per_second"] == pytest.approx(expected, rel=1e-6)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[0]["lr"] > 1000 * lines[-1]["lr"], "the rate of an epoch's last step"


def test_the_loss_of_an_epoch_is_a_mean_over_its_samples(parts, tmp_path):
    """With a rate of nearly 0 and three batches of 13, 13 and 14 samples."""
    result = run(parts, tmp_path / "run", loader=parts.plain_loader, epochs=1, lr=1e-30)
    (line,) = metrics(tmp_path / "run")
    assert (line["loss"], line["distillation"]) == (line["cross_entropy"], None)
    model = student().train()
    torch.manual_seed(0)
    student()  # the generator stands where the run's stood
    losses, sizes = [], []
    for batch in parts.plain_loader.epoch(0):
        logits = model(parts.normalise(batch.images))
        losses.append(nn.functional.cross_entropy(logits, batch.labels).item())
        sizes.append(len(batch.labels))
    assert line["loss"] == pytest.approx(np.average(losses, weights=sizes), rel=1e-5)
    assert len(set(sizes)) == 2
    assert result.resumed_from_epoch == 0


def test_last_and_best_weights_are_those_of_their_epochs(parts, tmp_path):
    result = run(parts, tmp_path / "run", epochs=6)
    top1 = [line["top1"] for line in metrics(tmp_path / "run")]
    assert (result.last.top1, result.top1_best) == (top1[-1], max(top1))
    for name, epoch in (("last", 6), ("best", 1 + top1.index(max(top1)))):
        tensors, about = load_weights(tmp_path / "run" / f"{name}.safetensors")
        assert about == {"arch": "small", "epoch": epoch}
        model = student()
        model.load_state_dict(tensors)
        assert parts.evaluator(model).top1 == top1[epoch - 1]


@pytest.mark.parametrize("step", range(9))
def test_a_run_stopped_at_any_step_goes_on_to_the_same_student(parts, undisturbed, tmp_path, step):
    def disturb(number: int) -> None:
        if number == step:
            raise Killed

    with pytest.raises(Killed):
        run(parts, tmp_path, loader=DisturbedLoader(parts.loader, disturb))
    result = run(parts, tmp_path, resume=True)
    assert result.resumed_from_epoch == step // 3
    assert_same_run(tmp_path, undisturbed)


def stop_at_rename(monkeypatch: pytest.MonkeyPatch, number: int, moment: str) -> None:
    """End the process's work just before or just after the file of that number appears."""
    rename = os.replace
    renames = iter(range(10**6))

    def replace(source: str, target: str) -> None:
        is_last = next(renames) == number
        if is_last and moment == "before":
            raise Killed
        rename(source, target)
        if is_last:
            raise Killed

    monkeypatch.setattr(os, "replace", replace)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_run_stopped_around_any_file_goes_on_to_the_same_student(
    parts, undisturbed, tmp_path, monkeypatch, moment
):
    """Every file appears by a rename; at least `last` and `resume` do in each epoch."""
    for number in range(2 * EPOCHS + 1):
        run_dir = tmp_path / str(number)
        stop_at_rename(monkeypatch, number, moment)
        with pytest.raises(Killed):
            run(parts, run_dir)
        monkeypatch.undo()
        run(parts, run_dir, resume=True)
        assert_same_run(run_dir, undisturbed)


def test_a_torn_line_of_metrics_is_dropped(parts, undisturbed, tmp_path):
    run(parts, tmp_path, epochs=EPOCHS)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"epoch": 3, "lo')
    run(parts, tmp_path, resume=True)
    assert_same_run(tmp_path, undisturbed)


def test_a_finished_run_taken_up_again_returns_its_accuracy(parts, tmp_path):
    first = run(parts, tmp_path)
    again = run(parts, tmp_path, resume=True)
    assert again == first._replace(resumed_from_epoch=EPOCHS)


def test_a_run_that_is_not_resumed_starts_afresh(parts, undisturbed, tmp_path):
    run(parts, tmp_path, lr=0.2)
    assert run(parts, tmp_path).resumed_from_epoch == 0
    assert_same_run(tmp_path, undisturbed)


def test_a_run_without_an_evaluation_split_reports_no_accuracy(parts, tmp_path):
    result = run(parts, tmp_path, evaluate=False, epochs=1)
    assert (result.last, result.top1_best) == (None, None)
    assert metrics(tmp_path)[0]["top1"] is None
    assert not (tmp_path / "best.safetensors").exists()


def test_a_teacher_inside_the_training_process_is_counted_over_a_resume(parts, tmp_path):
    teacher = projection()
    steps = 0

    def intrude(_number: int) -> None:
        nonlocal steps
        steps += 1
        teacher(torch.zeros(5, 3, 32, 32))
        if steps == 4:
            raise Killed

    loader = DisturbedLoader(parts.loader, intrude)
    with pytest.raises(Killed):
        run(parts, tmp_path, loader=loader)
    result = run(parts, tmp_path, loader=loader, resume=True)
    # Of the epoch that was not finished nothing counts: it was trained again.
    assert result.teacher_forwards == EPOCHS * 3 * 5


def test_without_a_teacher_nothing_is_counted(parts, tmp_path):
    assert run(parts, tmp_path, epochs=1).teacher_forwards == 0


def test_a_loss_that_is_not_finite_ends_the_run(parts, tmp_path):
    with pytest.raises(TrainingError, match=r"loss of epoch 1 is (nan|inf).*--lr than 1e\+30"):
        run(parts, tmp_path, lr=1e30)
    assert not (tmp_path / "resume.safetensors").exists()


# `kdcache train`


@pytest.fixture(scope="module")
def finished(tiny_store, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A workspace in which one student was trained on a subset, with the result."""
    workspace = tmp_path_factory.mktemp("train") / "workspace"
    copy_workspace(tiny_store.path.parents[1], workspace)
    beton = open_beton(workspace / "train.beton")
    subset = Subset(np.arange(5, 55), {"data_fingerprint": beton.manifest.fingerprint})
    subset.save(workspace / "subsets/fifty.npz")
    Workspace(workspace).remember("subset", workspace / "subsets/fifty.npz")
    # Other tests may have built other stores beside it.
    Workspace(workspace).remember("store", workspace / "stores/projection.zarr")
    return workspace, train(options(workspace))


def options(workspace: Path, **changes: object) -> TrainOptions:
    return TrainOptions(**{"workspace": workspace, "epochs": 2, "num_workers": 1} | changes)


@pytest.fixture
def workspace(finished: tuple[Path, dict], tmp_path: Path) -> Path:
    """A copy to write to."""
    return copy_workspace(finished[0], tmp_path / "workspace")


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """What the package says."""
    found: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    before = logger.handlers, logger.level
    logger.handlers = [Handler()]
    logger.setLevel(logging.INFO)
    yield found
    logger.handlers = before[0]
    logger.setLevel(before[1])


def files(workspace: Path) -> list[str]:
    return sorted(str(path.relative_to(workspace)) for path in workspace.rglob("*"))


def test_a_run_is_named_by_student_subset_and_seed(finished):
    workspace, result = finished
    assert result["path"] == str((workspace / "runs/resnet8-fifty-s0").resolve())
    assert (result["samples"], result["teacher_forwards"]) == (50, 0)


def test_a_second_run_gets_a_folder_of_its_own_and_the_same_student(workspace, finished):
    again = train(options(workspace))
    assert Path(again["path"]).name == "resnet8-fifty-s0-2"
    assert_same_run(Path(again["path"]), Path(finished[1]["path"]))


def test_the_seed_decides_the_student(workspace, finished):
    other = train(options(workspace, seed=1))
    assert Path(other["path"]).name == "resnet8-fifty-s1"
    mine, _ = load_weights(Path(other["path"]) / "last.safetensors")
    theirs, _ = load_weights(Path(finished[1]["path"]) / "last.safetensors")
    assert not torch.equal(mine["fc.weight"], theirs["fc.weight"])


def test_without_distillation_the_name_says_so_and_no_store_is_needed(
    tiny_workspace, tmp_path, messages
):
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    for file in tiny_workspace.glob("train.*"):
        (workspace / file.name).hardlink_to(file)
    result = train(options(workspace, kd=False, subset="full", epochs=1))
    assert Path(result["path"]).name == "resnet8-full-s0-no-kd"
    assert (result["samples"], result["top1"], result["top5"]) == (72, None, None)
    assert metrics(result["path"])[0]["distillation"] is None
    assert any("no KD" in message for message in messages)
    assert any("val.beton does not exist" in message for message in messages)


def test_a_store_of_the_clean_view_alone_is_warned_about(workspace, messages):
    beton = open_beton(workspace / "train.beton")
    write_spelled_store(workspace / "stores/clean.zarr", beton, num_views=0)
    train(options(workspace, teacher="clean", epochs=1, out=workspace / "clean"))
    assert any("clean view alone" in message for message in messages)


def lossy_store(workspace: Path, codec: str) -> None:
    """Build views under a codec; the clean view is taken from the finished store."""
    build_logits(
        BuildLogitsOptions(
            teacher="tests.teachers:projection",
            workspace=workspace,
            views=1,
            codec=codec,
            batch_size=8,
            device="cpu",
            store=str(workspace / "stores/lossy.zarr"),
        )
    )


@pytest.mark.parametrize(("codec", "warns"), [("topk(k=1)", True), ("int8", False)])
def test_a_codec_that_turns_the_gradient_is_warned_about(workspace, messages, codec, warns):
    lossy_store(workspace, codec)
    train(options(workspace, teacher="lossy", epochs=1, out=workspace / "lossy"))
    assert any("turns the distillation gradient by" in message for message in messages) is warns


def test_rows_drawn_for_another_temperature_are_refused_before_anything_is_written(workspace):
    lossy_store(workspace, "sampled(draws=20, temperature=2)")
    before = files(workspace)
    with pytest.raises(ConfigError, match="--temperature is 4, expected 2"):
        train(options(workspace, teacher="lossy"))
    assert files(workspace) == before
    assert train(options(workspace, teacher="lossy", temperature=2.0))["top1"] is not None


def test_reshaping_learns_from_other_logits(workspace, finished):
    result = train(options(workspace, reshape=True))
    plain, reshaped = (metrics(path)[0] for path in (finished[1]["path"], result["path"]))
    assert reshaped["distillation"] != plain["distillation"]
    # One step has seen the same student: what the teacher says does not change its labels' loss.
    assert reshaped["cross_entropy"] == pytest.approx(plain["cross_entropy"], rel=0.2)
    with pytest.raises(ConfigError, match="--reshape is given with --no-kd"):
        options(workspace, reshape=True, kd=False)


def test_a_run_that_was_stopped_before_its_first_checkpoint_starts_again(workspace, finished):
    run_dir = workspace / "runs/resnet8-fifty-s0"
    for name in ("resume.safetensors", "last.safetensors", "best.safetensors"):
        (run_dir / name).unlink()
    result = train(options(workspace, resume=True))
    assert result["resumed_from_epoch"] == 0
    assert_same_run(run_dir, Path(finished[1]["path"]))


def test_a_finished_run_resumed_returns_its_accuracy(workspace, finished):
    result = train(options(workspace, resume=True))
    times = ("seconds", "path", "resumed_from_epoch")
    assert result["resumed_from_epoch"] == 2
    for name in finished[1].keys() - set(times):
        assert result[name] == finished[1][name], name


@pytest.mark.parametrize(
    ("changes", "value"),
    [
        ({"epochs": 3}, "epochs is 3, there 2"),
        ({"alpha": 0.5, "lr": 0.25}, "lr is 0.25, there 0.025; alpha is 0.5, there 0.9"),
        ({"temperature": 2.0}, "temperature is 2.0, there 4.0"),
        ({"batch_size": 16}, "batch_size is 16, there 32"),
    ],
)
def test_a_resume_with_other_options_is_refused_and_names_them(workspace, changes, value):
    before = files(workspace)
    with pytest.raises(CacheMismatchError, match=value):
        train(options(workspace, resume=True, **changes))
    assert files(workspace) == before


def test_a_resume_on_other_samples_of_the_same_name_is_refused(workspace):
    path = workspace / "subsets/fifty.npz"
    given = Subset.load(path)
    Subset(given.sample_ids + 1, given.provenance).save(path)
    with pytest.raises(CacheMismatchError, match=r"sample_ids_digest is '[0-9a-f]{64}'"):
        train(options(workspace, resume=True))


def test_a_resume_without_a_run_is_refused(workspace):
    with pytest.raises(ConfigError, match=r"no run .*resnet8-fifty-s7"):
        train(options(workspace, resume=True, seed=7))
    with pytest.raises(ConfigError, match="nothing-here holds no run"):
        train(options(workspace, resume=True, out=workspace / "nothing-here"))


def test_the_run_that_is_resumed_is_the_newest_of_its_name(workspace):
    copy_workspace(workspace / "runs/resnet8-fifty-s0", workspace / "runs/resnet8-fifty-s0-2")
    copy_workspace(workspace / "runs/resnet8-fifty-s0", workspace / "runs/resnet8-fifty-s0-3")
    assert Path(train(options(workspace, resume=True))["path"]).name == "resnet8-fifty-s0-3"


def test_a_folder_that_is_there_is_refused_without_resume(workspace):
    run_dir = workspace / "runs/resnet8-fifty-s0"
    before = files(workspace)
    with pytest.raises(ConfigError, match=r"--out is .*resnet8-fifty-s0, which is there.*--resume"):
        train(options(workspace, out=run_dir))
    assert files(workspace) == before


@pytest.mark.parametrize(
    ("command", "given"),
    [(train, TrainOptions(model="resnet9")), (train_teacher, TrainTeacherOptions(model="vgg"))],
)
def test_an_unknown_model_is_refused_before_anything_is_written(
    tmp_path, monkeypatch, messages, command, given
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"--model is {given.model}, expected one of .*resnet18"):
        command(given)
    assert messages == []
    assert files(tmp_path) == []


def test_a_store_of_other_data_is_refused_before_anything_is_written(workspace, messages):
    change_manifest(workspace / "stores/projection.zarr", data_fingerprint="f" * 64)
    for changes in ({}, {"kd": False}):
        before = files(workspace)
        with pytest.raises(CacheMismatchError, match=r"data_fingerprint is f{12}"):
            train(options(workspace, subset="full", **changes))
        assert files(workspace) == before
    assert messages == []


def test_a_store_of_other_pixels_is_refused_unless_asked_otherwise(workspace, messages):
    store = workspace / "stores/projection.zarr"
    probe = zarr.open_group(store, mode="r+")["pixel_probe"]
    probe[3] = 255 - probe[3]
    before = files(workspace)
    with pytest.raises(CacheMismatchError, match=r"1 of 64 probed views.*--pixels warn"):
        train(options(workspace))
    assert files(workspace) == before
    train(options(workspace, pixels="warn", epochs=1, out=workspace / "other-pixels"))
    assert any("1 of 64 probed views" in message for message in messages)
    train(options(workspace, kd=False, epochs=1, out=workspace / "no-kd"))


def test_a_subset_of_other_data_is_refused(workspace):
    Subset(np.arange(9), {"data_fingerprint": "e" * 64}).save(workspace / "subsets/other.npz")
    with pytest.raises(CacheMismatchError, match=r"other\.npz was selected from other data.*e{12}"):
        train(options(workspace, subset="other"))


# `kdcache train-teacher`


def teacher_options(workspace: Path, **changes: object) -> TrainTeacherOptions:
    given = {"workspace": workspace, "model": "resnet8", "epochs": 1, "num_workers": 1}
    return TrainTeacherOptions(**given | changes)


def test_a_teacher_is_trained_once_and_replaced_only_when_asked(workspace):
    first = train_teacher(teacher_options(workspace))
    path = workspace / "teachers/resnet8.safetensors"
    assert first["path"] == str(path.resolve())
    tensors, about = load_weights(path)
    make_model("resnet8", num_classes=4, image_size=32).load_state_dict(tensors)
    assert (about["arch"], about["classes"], about["top1"]) == ("resnet8", 4, first["top1"])
    content = path.read_bytes()

    assert train_teacher(teacher_options(workspace)) == first | {"seconds": 0.0}
    with pytest.raises(CacheMismatchError, match="seed is 5, there 0"):
        train_teacher(teacher_options(workspace, seed=5))
    assert path.read_bytes() == content

    train_teacher(teacher_options(workspace, seed=5, overwrite=True))
    replaced, about = load_weights(path)
    assert about["seed"] == 5
    assert not torch.equal(replaced["fc.weight"], tensors["fc.weight"])
