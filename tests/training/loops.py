"""A small training run for the tests of the loop: its parts, its student, how it is stopped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import torch
from torch import nn

from kdcache.compute.normalize import Normalise
from kdcache.data.beton import open_beton
from kdcache.loader.batch import Batch
from kdcache.loader.distill import DistillLoader
from kdcache.models.weights import load_weights
from kdcache.options import TrainOptions
from kdcache.training.evaluator import Evaluator
from kdcache.training.trainer import LoopResult, Trainer, TrainSettings
from tests.workspaces import metrics, without_times

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
    resume: bool = False,
    model: nn.Module | None = None,
    tensorboard: bool = False,
    **changes: object,
) -> LoopResult:
    """Train from one fixed start; what a checkpoint brings back is changed before."""
    run_dir.mkdir(exist_ok=True)
    model = model or student()
    given = {"epochs": EPOCHS, "lr": 0.05, "precision": "fp32"}
    if resume and (run_dir / "resume.safetensors").exists():
        torch.manual_seed(99)
    trainer = Trainer(
        model,
        loader or parts.loader,
        parts.evaluator if evaluate else None,
        TrainSettings(**given | changes),
        normalise=parts.normalise,
        run_dir=run_dir,
        about={"arch": "small"},
        tensorboard=tensorboard,
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


def assert_same_run(found: Path, expected: Path) -> None:
    assert without_times(metrics(found)) == without_times(metrics(expected))
    names = sorted(path.stem for path in expected.glob("*.safetensors"))
    assert sorted(path.stem for path in found.glob("*.safetensors")) == names
    for name in names:
        tensors, _ = load_weights(found / f"{name}.safetensors")
        wanted, _ = load_weights(expected / f"{name}.safetensors")
        assert tensors.keys() == wanted.keys()
        for key, value in tensors.items():
            assert torch.equal(value, wanted[key]), (name, key)


def options(workspace: Path, **changes: object) -> TrainOptions:
    """Options of a short `kdcache train`."""
    return TrainOptions(**{"workspace": workspace, "epochs": 2, "num_workers": 1} | changes)
