"""The invariants of the whole walk: equivalence, resumption, and a teacher that is never called.

The first one, alignment, is in tests/loader/test_distill.py.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from kdcache.compute.normalize import Normalise
from kdcache.data.beton import open_beton
from kdcache.loader.batch import Batch
from kdcache.loader.distill import DistillLoader
from kdcache.loader.staging import Rows
from kdcache.models.registry import make_model
from kdcache.models.weights import load_weights, save_weights
from kdcache.options import BuildLogitsOptions, SelectOptions, TrainOptions
from kdcache.selection.select import select
from kdcache.store.build.build import build_logits
from kdcache.store.codecs.dense import Float32
from kdcache.store.logit_store import LogitStore
from kdcache.teacher.forward import TeacherForward
from kdcache.training.losses.alpha import Alpha
from kdcache.training.losses.loss import distillation_loss
from kdcache.training.losses.settings import LossSettings
from kdcache.training.train import train
from kdcache.training.trainer import Trainer, TrainSettings
from tests.conftest import ROOT
from tests.workspaces import copy_workspace, metrics, without_times

TEMPERATURE, ALPHA = 4.0, 0.9
FORWARD_BATCH = 8
"""Images of each teacher forward, in the build as in the live runs."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As many as the processes get: sums are the same for the same number of threads only."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def workspace(tiny_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed data, a convolutional teacher, its stores in both codecs, and a subset."""
    workspace = copy_workspace(tiny_workspace, tmp_path_factory.mktemp("walk") / "workspace")
    shutil.rmtree(workspace / "stores", ignore_errors=True)
    torch.manual_seed(7)
    model = make_model("resnet8", num_classes=4, image_size=32)
    for name in ("exact", "rounded"):
        save_weights(workspace / f"teachers/{name}.safetensors", model.state_dict(), {})
    for name, codec in (("exact", "float32"), ("rounded", "dense")):
        build_logits(
            BuildLogitsOptions(
                teacher=name,
                arch="resnet8",
                workspace=workspace,
                views=3,
                codec=codec,
                batch_size=FORWARD_BATCH,
                num_workers=1,
                device="cpu",
            )
        )
    select(SelectOptions(workspace=workspace, keep=0.7))
    return workspace


# Invariant 2: training from the cache is training with the live teacher


class LiveTeacher:
    """The store's teacher, run now: on the same pixels, in forwards of the same shape."""

    def __init__(self, workspace: Path) -> None:
        data = open_beton(workspace / "train.beton").manifest
        model = make_model("resnet8", num_classes=4, image_size=32)
        model.load_state_dict(load_weights(workspace / "teachers/exact.safetensors")[0])
        self._forward = TeacherForward(
            model,
            num_classes=4,
            mean=data.mean,
            std=data.std,
            device=torch.device("cpu"),
            precision="fp32",
        )

    def __call__(self, images: Tensor) -> Tensor:
        answers = []
        for part in images.split(FORWARD_BATCH):
            padding = part[-1:].expand(FORWARD_BATCH - len(part), -1, -1, -1)
            padded = torch.cat([part, padding]).contiguous(memory_format=torch.channels_last)
            answers.append(self._forward(padded)[: len(part)])
        return torch.cat(answers).clone()


class WrappedLoader:
    """A loader whose batches pass through `change` on their way to the trainer."""

    def __init__(self, loader: DistillLoader, change) -> None:
        self._loader = loader
        self._change = change

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        for batch in self._loader.epoch(epoch):
            yield self._change(batch)


def make_student() -> torch.nn.Module:
    torch.manual_seed(3)
    model = make_model("resnet8", num_classes=4, image_size=32)
    return model.to(memory_format=torch.channels_last)


def run(
    workspace: Path, run_dir: Path, model: torch.nn.Module, loader: object
) -> dict[str, Tensor]:
    """Train for 4 epochs and return the student's tensors."""
    run_dir.mkdir()
    data = open_beton(workspace / "train.beton").manifest
    loss = LossSettings(alpha=Alpha.parse(ALPHA), temperature=TEMPERATURE)
    settings = TrainSettings(epochs=4, lr=0.05, loss=loss, precision="fp32")
    normalise = Normalise(data.mean, data.std)
    Trainer(model, loader, None, settings, normalise=normalise, run_dir=run_dir, about={}).run(
        resume=False
    )
    return load_weights(run_dir / "last.safetensors")[0]


def make_loader(workspace: Path, teacher: str) -> DistillLoader:
    return DistillLoader(
        workspace / "train.beton",
        workspace / f"stores/{teacher}.zarr",
        range(3, 70),
        batch_size=24,
        num_workers=1,
    )


def test_a_run_from_exact_rows_ends_in_the_same_student_as_one_with_the_live_teacher(
    workspace, tmp_path
):
    teacher = LiveTeacher(workspace)

    def answer_now(batch: Batch) -> Batch:
        return batch._replace(rows=Rows(teacher(batch.images), Float32(4)))

    loader = make_loader(workspace, "exact")
    cached = run(workspace, tmp_path / "cached", make_student(), loader)
    live_loader = WrappedLoader(loader, answer_now)
    live = run(workspace, tmp_path / "live", make_student(), live_loader)
    loader.close()
    for name, value in live.items():
        assert torch.equal(cached[name], value), name
    fresh = make_student().state_dict()
    assert not torch.equal(cached["fc.weight"], fresh["fc.weight"])


class Step(NamedTuple):
    """One step's loss from given answers."""

    loss: Tensor
    at_logits: Tensor
    """(B, C) its gradient."""
    at_weights: Tensor
    """All of its gradient, in one row."""


def step(model: torch.nn.Module, images: Tensor, answers: Tensor, labels: Tensor) -> Step:
    model.zero_grad(set_to_none=True)
    logits = model(images)
    logits.retain_grad()
    parts = distillation_loss(logits, answers, labels, temperature=TEMPERATURE, alpha=ALPHA)
    parts.total.backward()
    gradients = [parameter.grad.flatten() for parameter in model.parameters()]
    return Step(parts.total.detach(), logits.grad.clone(), torch.cat(gradients))


@pytest.mark.parametrize("store", ["exact", "rounded"])
def test_at_each_step_loss_and_gradient_are_those_of_the_live_teacher(workspace, tmp_path, store):
    """Recomputed on the same pixels and weights, along a run from the cache."""
    teacher = LiveTeacher(workspace)
    data = open_beton(workspace / "train.beton").manifest
    normalise = Normalise(data.mean, data.std)
    model = make_student()
    steps = []

    def compare(batch: Batch) -> Batch:
        images, now = normalise(batch.images), teacher(batch.images)
        centred = now - now.mean(dim=1, keepdim=True)
        cached, live = (
            step(copy.deepcopy(model), images, answers, batch.labels)
            for answers in (batch.rows.logits(), now)
        )
        # The codec's bound on a logit, and 2^-22 for the float32 mean that it removes.
        largest = centred.abs().max().item()
        error = 0.0 if store == "exact" else largest * (2**-11 + 2**-22) + 2**-25
        # So each of the teacher's probabilities is right to a factor of e^(2 error / T), and
        # float32 sums of the loss itself carry about 1e-6.
        share = math.expm1(2 * error / TEMPERATURE)
        bound = ALPHA * TEMPERATURE * share / len(batch.labels)
        assert (cached.at_logits - live.at_logits).abs().max() <= bound + 1e-6 * (error > 0)
        spread = 2 * max(largest, 20.0) / TEMPERATURE
        bound = ALPHA * TEMPERATURE**2 * (share * spread + 2 * error / TEMPERATURE)
        assert abs(cached.loss - live.loss) <= bound + 1e-6 * (error > 0)
        angle = torch.cosine_similarity(cached.at_weights, live.at_weights, dim=0)
        # The KD-gradient's angle is what a codec is judged by: here below 0.3 degrees.
        assert angle > 1 - 1e-5
        steps.append((error, torch.equal(cached.at_weights, live.at_weights)))
        return batch

    loader = make_loader(workspace, store)
    run(workspace, tmp_path / "run", model, WrappedLoader(loader, compare))
    loader.close()
    assert len(steps) == 4 * 3
    assert all(equal for _, equal in steps) is (store == "exact")


# Invariants 3 and 4: a killed run goes on to the same student, and no teacher is ever opened

RUNNER = """
import os, sys

log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
watched = sys.argv[2:4]

def watch(event, arguments):
    for argument in arguments:
        if isinstance(argument, (str, bytes, os.PathLike)):
            if any(name in os.fsdecode(argument) for name in watched):
                os.write(log, f"{event} {os.fsdecode(argument)}\\n".encode())

sys.addaudithook(watch)
open(watched[1]).close()
from kdcache.cli import main
sys.exit(main(sys.argv[4:]))
"""
"""Runs a command and writes down whatever touches the watched names; opens the second itself."""

EPOCHS = 12

WAY = {
    "optimizer": "adamw",
    "schedule": "cosine",
    "warmup": 0.1,
    "accumulate": 2,
    "clip_norm": 1.0,
    "ema": 0.95,
}
"""Of both runs: as much as can be wrong about a checkpoint. The default way is stopped at each step
in tests/training/test_trainer.py."""


class Story(NamedTuple):
    """One student: trained undisturbed, and killed with -9 and taken up in a new process."""

    workspace: Path
    undisturbed: Path
    killed: Path
    status_of_killed: int
    epochs_before: int
    """Whole lines of metrics that the killed process left."""
    result: dict
    """What the second process printed."""
    audited: list[list[str]]
    """Of both processes, what the audit hook saw."""
    opened: list[int]
    """Of both processes, how many times the kernel saw a file of teachers/ opened."""
    control: str


class Watch:
    """Counts, by the kernel's account, how often anything below a folder is opened.

    The audit hook alone would miss it: safetensors opens files outside Python.
    """

    def __init__(self, folder: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK)
        in_open = 0x20
        added = self._libc.inotify_add_watch(self._descriptor, os.fsencode(folder), in_open)
        assert added > 0, os.strerror(ctypes.get_errno())

    def count(self) -> int:
        """Return how many bytes of events came since the last call; 0 for none."""
        with contextlib.suppress(BlockingIOError):
            return len(os.read(self._descriptor, 1 << 16))
        return 0

    def close(self) -> None:
        os.close(self._descriptor)


@pytest.fixture(scope="module")
def story(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("story")
    workspace = copy_workspace(workspace, folder / "workspace")
    teachers, control = workspace / "teachers", folder / "control"
    control.write_text("")
    killed = folder / "killed"
    command = [
        "train",
        "--out",
        str(killed),
        "--epochs",
        str(EPOCHS),
        "--workspace",
        str(workspace),
    ]
    command += ["--num-workers", "1", "--json"]
    for name, value in WAY.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    killed_after = random.randrange(1, EPOCHS - 2)  # noqa: S311  (any will do)

    def start(log: str, *more: str) -> subprocess.Popen[str]:
        with (folder / f"{log}.err").open("w") as said:
            return subprocess.Popen(
                [
                    *(sys.executable, "-c", RUNNER),
                    *(str(folder / log), str(teachers), str(control)),
                    *command,
                    *more,
                ],
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
            )

    watch = Watch(teachers)
    next(teachers.iterdir()).read_bytes()
    assert watch.count() > 0, "the watch sees what is opened"

    def epochs_written() -> int:
        file = killed / "metrics.jsonl"
        return file.read_text().count("\n") if file.exists() else 0

    with start("first.log") as first:
        while first.poll() is None and epochs_written() < killed_after:
            time.sleep(0.002)
        first.send_signal(signal.SIGKILL)
    opened = [watch.count()]
    epochs_before = epochs_written()
    shutil.rmtree(teachers)
    with start("second.log", "--resume") as second:
        printed, _ = second.communicate(timeout=200)
    assert second.returncode == 0, (folder / "second.log.err").read_text()
    opened.append(watch.count())
    watch.close()

    undisturbed = folder / "undisturbed"
    train(TrainOptions(workspace=workspace, out=undisturbed, epochs=EPOCHS, num_workers=1, **WAY))
    return Story(
        workspace,
        undisturbed,
        killed,
        first.returncode,
        epochs_before,
        json.loads(printed),
        [(folder / log).read_text().splitlines() for log in ("first.log", "second.log")],
        opened,
        str(control),
    )


def test_a_killed_run_goes_on_to_the_same_student(story):
    assert story.status_of_killed == -signal.SIGKILL
    # A line of metrics comes before its epoch's checkpoint.
    assert story.epochs_before - story.result["resumed_from_epoch"] in (0, 1)
    for name in ("last", "best", "ema", "resume"):
        tensors, about = load_weights(story.killed / f"{name}.safetensors")
        wanted, about_wanted = load_weights(story.undisturbed / f"{name}.safetensors")
        assert tensors.keys() == wanted.keys()
        for key, value in tensors.items():
            assert torch.equal(value, wanted[key]), (name, key)
        if name != "resume":
            assert about == about_wanted


def test_a_killed_runs_metrics_have_each_epoch_once(story):
    found = metrics(story.killed)
    assert [line["epoch"] for line in found] == list(range(1, EPOCHS + 1))
    assert without_times(found) == without_times(metrics(story.undisturbed))
    assert 1 <= story.epochs_before < EPOCHS


def test_a_killed_run_reports_what_an_undisturbed_one_does(story):
    last = metrics(story.undisturbed)[-1]
    assert (story.result["top1"], story.result["top5"]) == (last["top1"], last["top5"])
    best = max(line["top1"] for line in metrics(story.undisturbed))
    assert story.result["top1_best"] == best
    assert story.result["path"] == str(story.killed.resolve())


def test_training_opens_no_file_of_a_teacher(story):
    # The hook saw the file that the runner opened to show that it works, and nothing else.
    assert story.audited == [[f"open {story.control}"]] * 2
    assert story.opened[0] == 0


def test_training_measures_no_teacher_forward_and_needs_no_teacher(story):
    assert story.result["teacher_forwards"] == 0
    assert not (story.workspace / "teachers").exists()


def test_students_see_the_pixels_that_the_teacher_answered_for(workspace):
    """Invariant 2, first half: the live answer to the loader's pixels is the row beside them."""
    teacher = LiveTeacher(workspace)
    loader = make_loader(workspace, "exact")
    store = LogitStore.open(workspace / "stores/exact.zarr")
    for epoch in range(4):
        for batch in loader.epoch(epoch):
            answers = teacher(batch.images)
            assert torch.equal(batch.rows.logits(), answers)
            stored = store.logits(batch.sample_ids.numpy(), 1 + epoch % 3)
            assert np.array_equal(stored, answers.numpy())
    loader.close()
