"""The results of `kdcache train-teacher`, `kdcache train` and `kdcache evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from kdcache.results import JSON, Result

_SUMMARISED = ("top1", "top1_best", "top5", "top1_ema")


@dataclass(frozen=True, kw_only=True)
class TrainTeacherResult(Result):
    """The teacher that `train_teacher` trained or found up to date."""

    top1: float | None
    """Top-1 accuracy on the evaluation split in percent, if there is one."""
    path: Path
    """The safetensors file."""
    seconds: float
    """Duration of this call; 0 if the teacher was up to date."""


@dataclass(frozen=True, kw_only=True)
class RunResult(Result):
    """One trained student. Accuracies are in percent, on the evaluation split if there is one."""

    top1: float | None
    """Top-1 accuracy after the last epoch."""
    top1_best: float | None
    """Highest top-1 accuracy of all epochs. It was chosen on the evaluation split."""
    top5: float | None
    """Top-5 accuracy after the last epoch."""
    top1_ema: float | None
    """Top-1 accuracy of the averaged weights, with `ema`."""
    teacher_forwards: int
    """Images that a teacher saw during the training, counted; 0 with cached logits."""
    student_forwards: int
    """Images that the student saw during the training."""
    steps: int
    """Optimiser steps."""
    images_per_second: float
    """Training images per second, without evaluation."""
    resumed_from_epoch: int
    """Epochs that an earlier call had finished."""
    samples: int
    """Training images per epoch."""
    seconds: float
    """Duration of the call."""
    path: Path
    """The run folder."""


@dataclass(frozen=True, kw_only=True)
class TrainResult(Result):
    """The students that `train` trained: one for each seed.

    The properties are means over the students, so that they mean the same for one and for several.
    """

    runs: tuple[RunResult, ...]
    """One result for each student, in the order of the seeds."""
    seeds: tuple[int, ...]
    """The seeds of the students, in the same order."""
    seconds: float
    """Duration of the call."""

    @property
    def top1(self) -> float | None:
        """Mean top-1 accuracy after the last epoch, in percent."""
        return self._mean("top1")

    @property
    def top1_std(self) -> float | None:
        """Standard deviation of the top-1 accuracy (divisor n - 1); None for fewer than two."""
        values = self._known("top1")
        return stdev(values) if len(values) > 1 else None

    @property
    def top1_best(self) -> float | None:
        """Mean over the students of their highest top-1 accuracy, in percent."""
        return self._mean("top1_best")

    @property
    def top5(self) -> float | None:
        """Mean top-5 accuracy after the last epoch, in percent."""
        return self._mean("top5")

    @property
    def top1_ema(self) -> float | None:
        """Mean top-1 accuracy of the averaged weights, in percent."""
        return self._mean("top1_ema")

    @property
    def teacher_forwards(self) -> int:
        """Images that a teacher saw, over all students."""
        return sum(run.teacher_forwards for run in self.runs)

    @property
    def path(self) -> Path:
        """The run folder of the last student."""
        return self.runs[-1].path

    def to_json(self) -> dict[str, JSON]:
        """Return the JSON object of the student; for several, means, deviations and `runs`."""
        if len(self.runs) == 1:
            return self.runs[0].to_json()
        return {
            "seeds": list(self.seeds),
            **{name: self._mean_and_std(name) for name in _SUMMARISED},
            "seconds": self.seconds,
            "runs": [run.to_json() for run in self.runs],
        }

    def _known(self, name: str) -> list[float]:
        return [value for run in self.runs if (value := getattr(run, name)) is not None]

    def _mean(self, name: str) -> float | None:
        values = self._known(name)
        return mean(values) if values else None

    def _mean_and_std(self, name: str) -> dict[str, JSON] | None:
        values = self._known(name)
        return {"mean": mean(values), "std": stdev(values)} if values else None


@dataclass(frozen=True, kw_only=True)
class EvaluateResult(Result):
    """Accuracy, likelihood and calibration of a model on the clean view of a split."""

    top1: float
    """Top-1 accuracy in percent."""
    top5: float
    """Top-5 accuracy in percent."""
    nll: float
    """Mean -log p of the label, in nats."""
    ece: float
    """Expected calibration error, in [0, 1]."""
    samples: int
    split: str
    seconds: float
    path: Path
    """The weights."""
