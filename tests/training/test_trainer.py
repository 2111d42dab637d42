"""The loop: what a run leaves behind, and how it is taken up."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from kdcache.errors import TrainingError
from kdcache.loader.batch import Batch
from kdcache.loader.distill import DistillLoader
from kdcache.models.weights import load_weights
from kdcache.training.losses.loss import distillation_loss
from tests.teachers import projection
from tests.training.loops import (
    EPOCHS,
    NUM_SAMPLES,
    DisturbedLoader,
    Killed,
    Parts,
    assert_same_run,
    run,
    student,
)
from tests.workspaces import metrics


@pytest.fixture(scope="module")
def undisturbed(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("undisturbed")
    run(parts, run_dir)
    return run_dir


def test_a_run_says_what_each_epoch_came_to(undisturbed):
    lines = metrics(undisturbed)
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert set(line) == {
            *("epoch", "loss", "cross_entropy", "distillation", "top1", "top5"),
            *("alpha", "lr", "images_per_second", "seconds"),
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
    with pytest.raises(TrainingError, match=r"loss of step 2 is (nan|inf).*lr than 1e\+30"):
        run(parts, tmp_path, lr=1e30)
    assert not (tmp_path / "resume.safetensors").exists()


# What can be asked of the loop; each goes on bit for bit when it was stopped

WAYS = {
    "adamw, cosine": {"optimizer": "adamw", "schedule": "cosine", "lr": 1e-3, "warmup": 0.3},
    "step, average": {"schedule": "step", "milestones": (0.4, 0.7), "ema": 0.9, "momentum": 0.0},
    "accumulated": {"accumulate": 2, "schedule": "constant", "warmup": 0.5, "clip_norm": 0.5},
    "5 steps of 9": {"steps": 5, "epochs": 2, "ema": 0.5, "eval_every": 2},
    "fp16": {"precision": "fp16", "clip_norm": 1.0},
    "bf16": {"precision": "bf16"},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_every_kind_of_run_goes_on_to_the_same_student(parts, tmp_path, way):
    run(parts, tmp_path / "undisturbed", **way)
    for step in (1, 4):
        run_dir = tmp_path / str(step)

        def disturb(number: int, step: int = step) -> None:
            if number == step:
                raise Killed

        with pytest.raises(Killed):
            run(parts, run_dir, loader=DisturbedLoader(parts.loader, disturb), **way)
        assert run(parts, run_dir, resume=True, **way).resumed_from_epoch == step // 3
        assert_same_run(run_dir, tmp_path / "undisturbed")


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_every_kind_of_run_learns(parts, tmp_path, way):
    run(parts, tmp_path, **way | {"epochs": 4, "steps": None})
    losses = [line["loss"] for line in metrics(tmp_path)]
    assert losses[-1] < losses[0]


class Weights(nn.Module):
    """A linear map, which neither norms nor draws: what batches do to it adds up."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 3072))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.contiguous().flatten(1) @ self.weight.T


PLAIN = {"schedule": "constant", "momentum": 0.0, "weight_decay": 0.0, "lr": 0.01}


@pytest.fixture(scope="module")
def one_batch(parts: Parts, tiny_store) -> Iterator[DistillLoader]:
    """The samples of `parts` in one batch."""
    loader = DistillLoader(
        parts.loader.beton, tiny_store, parts.loader.sample_ids, batch_size=40, num_workers=1
    )
    yield loader
    loader.close()


def last_weights(run_dir: Path) -> torch.Tensor:
    return load_weights(run_dir / "last.safetensors")[0]["weight"]


def test_batches_whose_gradients_accumulate_are_one_batch(parts, one_batch, tmp_path):
    """Of 13, 13 and 14 samples, each sample with the same weight."""
    assert parts.loader.batch_sizes.tolist() == [13, 13, 14]
    run(parts, tmp_path / "three", model=Weights(), accumulate=3, **PLAIN)
    run(parts, tmp_path / "one", model=Weights(), loader=one_batch, **PLAIN)
    run(parts, tmp_path / "steps", model=Weights(), **PLAIN)
    three, one, steps = (last_weights(tmp_path / name) for name in ("three", "one", "steps"))
    # Sums of float32 in another order.
    torch.testing.assert_close(three, one, rtol=1e-4, atol=1e-7)
    assert (steps - one).abs().max() > 1e-3


def test_the_last_batches_of_an_epoch_make_a_step_of_their_own(parts, tmp_path):
    """Two steps of 26 and 14 samples: the rate falls to a tenth after the first of the two."""
    given = PLAIN | {"schedule": "step", "milestones": (0.5,), "epochs": 1}
    run(parts, tmp_path / "run", model=Weights(), accumulate=2, **given)
    model, rates = Weights(), iter([0.01, 0.001])
    batches = [
        (parts.normalise(batch.images), batch.rows.logits(), batch.labels)
        for batch in parts.loader.epoch(0)
    ]
    for group in (batches[:2], batches[2:]):
        images, answers, labels = (torch.cat(things) for things in zip(*group, strict=True))
        parts_of_loss = distillation_loss(
            model(images), answers, labels, temperature=4.0, alpha=0.9
        )
        (gradient,) = torch.autograd.grad(parts_of_loss.total, [model.weight])
        with torch.no_grad():
            model.weight.sub_(next(rates) * gradient)
    torch.testing.assert_close(
        last_weights(tmp_path / "run"), model.weight.data, rtol=1e-4, atol=1e-7
    )
    assert metrics(tmp_path / "run")[0]["lr"] == pytest.approx(0.001)


@pytest.mark.parametrize(("longest", "is_shortened"), [(0.01, True), (1e6, False)])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_long_gradient_is_shortened(parts, one_batch, tmp_path, longest, is_shortened, precision):
    given = PLAIN | {"epochs": 1, "precision": precision}
    run(parts, tmp_path / "free", model=Weights(), loader=one_batch, **given)
    run(parts, tmp_path / "run", model=Weights(), loader=one_batch, clip_norm=longest, **given)
    free, found = last_weights(tmp_path / "free"), last_weights(tmp_path / "run")
    assert free.norm() > 0.01 * longest or not is_shortened
    expected = free * (0.01 * longest / free.norm()) if is_shortened else free
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


def test_a_first_step_that_overflows_in_fp16_is_left_out(parts, one_batch, tmp_path):
    """torch would warn that the schedule went before the optimiser; warnings are errors here."""
    model = Weights()
    with torch.no_grad():
        model.weight.add_(1e-3)
    hook = model.weight.register_hook(lambda gradient: gradient * float("inf"))
    run(parts, tmp_path, model=model, loader=one_batch, epochs=1, precision="fp16")
    hook.remove()
    assert torch.equal(last_weights(tmp_path), torch.full((4, 3072), 1e-3))
    _, about = load_weights(tmp_path / "resume.safetensors")
    assert about["scaler"]["scale"] == 2**15, "half of where it starts"


def test_a_run_of_steps_ends_with_them(parts, tmp_path):
    result = run(parts, tmp_path, steps=4, epochs=2, schedule="cosine")
    _, about = load_weights(tmp_path / "resume.safetensors")
    assert about["progress"]["images_seen"] == 40 + 13
    assert about["schedule_state"]["last_epoch"] == 4
    assert result.last is not None
    # The last of four steps of half a cosine.
    assert metrics(tmp_path)[-1]["lr"] == pytest.approx(0.05 * (1 + np.cos(np.pi * 3 / 4)) / 2)


@pytest.mark.parametrize(("every", "expected"), [(2, {2, 4, 5}), (3, {3, 5}), (9, {5})])
def test_evaluation_comes_now_and_then_and_after_the_last_epoch(parts, tmp_path, every, expected):
    result = run(parts, tmp_path, epochs=5, eval_every=every)
    lines = metrics(tmp_path)
    assert {line["epoch"] for line in lines if line["top1"] is not None} == expected
    found = {line["epoch"]: line["top1"] for line in lines if line["top1"] is not None}
    assert result.top1_best == max(found.values())
    assert result.last.top1 == found[5]
    _, about = load_weights(tmp_path / "best.safetensors")
    assert found[about["epoch"]] == result.top1_best


def test_the_average_is_evaluated_and_saved_beside_the_last_weights(parts, tmp_path):
    result = run(parts, tmp_path, ema=0.9)
    plain = run(parts, tmp_path / "plain")
    assert (result.last, plain.ema) == (plain.last, None)
    averaged, about = load_weights(tmp_path / "ema.safetensors")
    last, _ = load_weights(tmp_path / "last.safetensors")
    assert about == {"arch": "small", "epoch": EPOCHS}
    assert not torch.equal(averaged["0.weight"], last["0.weight"])
    assert not torch.equal(averaged["1.running_var"], last["1.running_var"])
    model = student()
    model.load_state_dict(averaged)
    found = parts.evaluator(model)
    assert found == result.ema
    assert metrics(tmp_path)[-1]["top1_ema"] == found.top1
    assert result.teacher_forwards == 0
    assert not (tmp_path / "plain/ema.safetensors").exists()


def test_the_batch_whose_loss_is_no_number_is_named(parts, tmp_path):
    ids = []

    class Poisoned(DisturbedLoader):
        def epoch(self, epoch: int) -> Iterator[Batch]:
            for number, batch in enumerate(super().epoch(epoch)):
                if (epoch, number) == (1, 1):
                    ids.extend(batch.sample_ids.tolist())
                    batch.rows.encoded.fill_(float("nan"))
                yield batch

    loader = Poisoned(parts.loader, lambda _number: None)
    with pytest.raises(TrainingError, match=r"step 5 is nan") as error:
        run(parts, tmp_path, loader=loader)
    assert f"its samples are {', '.join(map(str, ids[:8]))} and 5 more." in str(error.value)
    assert load_weights(tmp_path / "resume.safetensors")[1]["progress"]["epochs_done"] == 1


def test_a_compiled_student_keeps_the_names_of_its_weights_and_teachers_are_still_counted(
    parts, one_batch, tmp_path
):
    teacher = projection()
    loader = DisturbedLoader(one_batch, lambda _number: teacher(torch.zeros(5, 3, 32, 32)))
    given = {"model": Weights(), "epochs": 2, "evaluate": False}
    result = run(parts, tmp_path / "compiled", loader=loader, compile=True, **given)
    assert result.teacher_forwards == 2 * 5
    run(parts, tmp_path / "plain", loader=one_batch, **given | {"model": Weights()})
    # Compiled sums are in another order.
    torch.testing.assert_close(
        last_weights(tmp_path / "compiled"),
        last_weights(tmp_path / "plain"),
        rtol=1e-4,
        atol=1e-7,
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 120 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if mount is None or umount is None:
        pytest.skip("needs the commands mount and umount")
    command = [mount, "-t", "tmpfs", "-o", "size=120k", "tmpfs", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs to mount a tmpfs, which is not allowed here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run([umount, str(place)], check=True)


def test_on_a_full_disk_the_last_checkpoint_stays_and_the_run_goes_on_from_it(
    parts, undisturbed, small_disk
):
    taken = small_disk / "taken"

    def fill(number: int) -> None:
        if number == 4:  # in the second epoch: until there is less than a file left
            free = shutil.disk_usage(small_disk).free
            taken.write_bytes(bytes(free - 8192))

    run_dir = small_disk / "run"
    with pytest.raises(
        TrainingError, match=r"epoch 2 cannot be written to .*disk/run: .*No space left.*epoch 1:"
    ):
        run(parts, run_dir, loader=DisturbedLoader(parts.loader, fill))
    assert not list(run_dir.glob(".*.partial"))
    assert load_weights(run_dir / "resume.safetensors")[1]["progress"]["epochs_done"] == 1
    taken.unlink()
    assert run(parts, run_dir, resume=True).resumed_from_epoch == 1
    assert_same_run(run_dir, undisturbed)


def test_memory_and_threads_are_flat_over_30_epochs(parts, tmp_path):
    process = psutil.Process()
    used_bytes, threads = [], []

    class Watched(DisturbedLoader):
        def epoch(self, epoch: int) -> Iterator[Batch]:
            yield from super().epoch(epoch)
            used_bytes.append(process.memory_info().rss)
            threads.append(process.num_threads())

    loader = Watched(parts.loader, lambda _number: None)
    run(parts, tmp_path, loader=loader, epochs=33, ema=0.9, tensorboard=True)
    # The images of one batch in float32, kept in each epoch, would be 33 x 160 kB = 5 MB.
    assert used_bytes[-1] - used_bytes[2] < 3_000_000
    assert threads[-1] <= threads[2]
