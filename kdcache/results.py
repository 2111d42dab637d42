"""The result of each command: one frozen dataclass per command, as `options.py` has their options.

`to_json` gives what the command line prints with --json. The modules that a result needs are loaded
by the command that makes it, so importing this file loads no heavy library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from kdcache.compute.quality import Quality
    from kdcache.data.beton import Beton

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
"""A value that JSON can hold."""


def as_json(value: object) -> JSON:
    """Return a value of a result as JSON content: paths become texts, tuples become lists."""
    if isinstance(value, Result):
        return value.to_json()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return as_json(value._asdict())
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, dict):
        return {str(name): as_json(item) for name, item in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{value!r} of type {type(value).__name__} has no form in JSON")


@dataclass(frozen=True, kw_only=True)
class Result:
    """What every command returns."""

    def to_json(self) -> dict[str, JSON]:
        """Return the JSON object that `--json` prints."""
        return {one.name: as_json(getattr(self, one.name)) for one in fields(self)}


@dataclass(frozen=True, kw_only=True)
class PackResult(Result):
    """The betons that `pack` wrote or found up to date."""

    fingerprint: str
    """Hex sha256 of the content of the training images."""
    train: Beton
    """The training images; with `subset`, the images of the subset."""
    val: Beton | None
    """The evaluation split, if there is one."""
    skipped: int
    """Images that could not be decoded and were left out."""

    def to_json(self) -> dict[str, JSON]:
        """Return the JSON object; a beton is described by `samples`, `classes` and `path`."""
        return {
            "fingerprint": self.fingerprint,
            "train": _describe_beton(self.train),
            "val": None if self.val is None else _describe_beton(self.val),
            "skipped": self.skipped,
        }


def _describe_beton(beton: Beton) -> dict[str, JSON]:
    return {
        "samples": beton.manifest.samples,
        "classes": beton.manifest.classes,
        "path": str(beton.path.resolve()),
    }


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
class PassCost(Result):
    """What a teacher pass was expected to cost, and what it took."""

    expected_seconds: float
    seconds: float
    expected_bytes: int | None
    """Bytes of the whole store; None if its codec was not decided before the pass."""
    break_even_epochs: float
    """Student epochs in which a live teacher runs as many forwards as the pass."""


@dataclass(frozen=True, kw_only=True)
class BuildReport(Result):
    """The figures of one call of `build_logits`."""

    samples: int
    """Images of the training data."""
    views: int
    """Augmented views of the store."""
    rows: int
    """Rows of each augmented view."""
    teacher_forwards: int
    """Images whose logits this call stored. The preflight batch and the evaluation split do not
    count."""
    cost: PassCost | None
    """None if nothing was missing."""
    train_quality: Quality | None
    """The teacher on the clean view of the training data; None if this call built nothing."""
    val_quality: Quality | None
    """The teacher on the evaluation split; None if there is none, or this call built nothing."""
    bytes: int
    """Size of the store."""
    seconds: float
    """Duration of the call."""
    path: Path | str
    """Path or URL of the store."""


@dataclass(frozen=True, kw_only=True)
class ScoreResult(Result):
    """A score, computed from a store's clean view."""

    score: str
    computed_from: str
    """The teacher's pass, or the stored rows."""
    samples: int
    mean: float
    path: Path | str
    """The score file, or the store if it was built with this score."""


@dataclass(frozen=True, kw_only=True)
class SubsetComparison(Result):
    """The overlap of two subsets. Fractions are of the smaller subset."""

    other_kept: int
    """Samples of the other subset."""
    overlap: int
    """Samples in both subsets."""
    overlap_share: float
    by_chance_share: float
    """What two random subsets with the same numbers per class have in common."""
    kept_per_class: tuple[int, ...]
    """(C,) samples of each class in the new subset."""
    other_kept_per_class: tuple[int, ...]
    """(C,) samples of each class in the other subset."""


@dataclass(frozen=True, kw_only=True)
class SelectReport(Result):
    """The figures of one call of `select`."""

    method: str
    keep: float
    """Fraction of samples to keep, in (0, 1]."""
    kept: int
    of: int
    """Samples to choose from."""
    path: Path
    """The subset file."""
    compare: SubsetComparison | None = None
    """Overlap with another subset, if one was named."""

    def to_json(self) -> dict[str, JSON]:
        """Return the JSON object; `compare` appears if a subset was named."""
        content = super().to_json()
        if self.compare is None:
            del content["compare"]
        return content


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


_SUMMARISED = ("top1", "top1_best", "top5", "top1_ema")


@dataclass(frozen=True, kw_only=True)
class TrainResult(Result):
    """The students that `train` trained: one for each seed.

    The properties are means over the students, so that they mean the same for one and for several.
    """

    runs: tuple[RunResult, ...]
    """One result for each student, in the order of the seeds."""
    seeds: tuple[int, ...]
    """The seed of each student."""
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


@dataclass(frozen=True, kw_only=True)
class VerifyResult(Result):
    """What `verify` has read, repaired and compared."""

    images: int
    """Checked images of the splits and of the packed subsets."""
    store: Path | str | None
    """The checked store, if there is one."""
    repaired: tuple[str, ...]
    """Keys of the store that were built again."""
    rows_compared: int | None
    """Rows whose logits the teacher computed again, with `teacher`."""
    largest_difference: float | None
    """Largest difference of these logits, as a fraction of the row's range."""
    bound: float | None
    """Largest allowed difference."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class MergeResult(Result):
    """The store that `merge` wrote."""

    parts: int
    views: int
    """Augmented views that have any shard."""
    complete: int
    """Complete views, the clean view among them."""
    missing_shards: int
    path: Path | str


@dataclass(frozen=True, kw_only=True)
class ExportResult(Result):
    """The file that `export` wrote."""

    rows: int
    classes: int
    bytes: int
    path: Path


@dataclass(frozen=True, kw_only=True)
class StepResult(Result):
    """What `run` did with one step of a pipeline."""

    name: str
    did: Literal["ran", "up to date", "would run"]
    why: str | None
    """Why the step had to run; None if it was up to date."""
    seconds: float | None
    """Duration, if it ran."""
    result: Mapping[str, JSON]
    """The JSON object of the step's command; empty if the step would run."""


@dataclass(frozen=True, kw_only=True)
class PipelineResult(Result):
    """What `run` did with a pipeline."""

    pipeline: Path
    """The TOML file."""
    steps: tuple[StepResult, ...]

    def to_json(self) -> dict[str, JSON]:
        """Return `recipe`, `stages` by name, and the main figures of each student by step."""
        shown = ("did", "why", "seconds")
        return {
            "recipe": str(self.pipeline),
            "stages": {
                step.name: {key: as_json(getattr(step, key)) for key in shown}
                for step in self.steps
            },
            "students": {
                step.name: {key: step.result.get(key) for key in _STUDENT_KEYS}
                for step in self.steps
                if "teacher_forwards" in step.result or "runs" in step.result
            },
        }


_STUDENT_KEYS = ("samples", "top1", "top1_best", "top5", "teacher_forwards", "images_per_second")


@dataclass(frozen=True, kw_only=True)
class ArmResult(Result):
    """The students of one place of a study's table. Accuracies are in percent."""

    row: str
    column: str
    mean: float | None
    """None where the table has no student."""
    standard_error: float | None
    """None for fewer than two students."""
    n: int
    difference: float | None
    """Mean difference to the first row, over the seeds that both have."""
    difference_standard_error: float | None
    pairs: int
    """Seeds that both have."""


@dataclass(frozen=True, kw_only=True)
class StudyResult(Result):
    """What `study` trained, or with `table` what it found in the results."""

    results: Path
    """The Parquet file."""
    cells: int
    """Students of the grid and this part."""
    left: int
    """Students without a result."""
    trained: int = 0
    """Students that this call trained."""
    failed: int = 0
    """Students that failed: in this call, or with `table` among those shown."""
    stopped: bool = False
    """True if `until` came before the end."""
    table: str | None = None
    """The table of accuracies, as text."""
    difference: str | None = None
    """The table of differences to the first row, as text; None with a single row."""
    arms: tuple[ArmResult, ...] = ()
    """The places of the table."""
    plot: Path | None = None
    """The figure."""
    dry_run: bool = False

    def to_json(self) -> dict[str, JSON]:
        """Return the JSON object with the keys that belong to what was asked."""
        if self.table is not None:
            keys = ["table", "difference", "arms", "failed", "plot"]
            keys = [key for key in keys if getattr(self, key) is not None]
        elif self.dry_run:
            keys = ["cells", "left"]
        else:
            keys = ["results", "cells", "trained", "failed", "left", "stopped"]
        return {key: as_json(getattr(self, key)) for key in keys}


@dataclass(frozen=True, kw_only=True)
class DoctorFinding(Result):
    """The outcome of one check of this machine."""

    level: Literal["error", "note", "ok"]
    """error: the demo, or training on the GPU that is there, would fail."""
    check: str
    """What was checked, such as "open files"."""
    found: str
    remedy: str | None
    """What to do; None if nothing needs to be done."""


@dataclass(frozen=True, kw_only=True)
class DoctorResult(Result):
    """The findings of `doctor`."""

    findings: tuple[DoctorFinding, ...]

    @property
    def errors(self) -> tuple[DoctorFinding, ...]:
        """The findings that keep kdcache from working on this machine."""
        return tuple(one for one in self.findings if one.level == "error")

    def to_json(self) -> dict[str, JSON]:
        """Return `error`, `note` and `ok`, each with `found` and `remedy` by check."""
        return {
            level: {
                one.check: {"found": one.found}
                | ({} if one.remedy is None else {"remedy": one.remedy})
                for one in self.findings
                if one.level == level
            }
            for level in ("error", "note", "ok")
        }


@dataclass(frozen=True, kw_only=True)
class ShowResult(Result):
    """What a beton, teacher, store, subset or run says about itself."""

    kind: Literal["beton", "teacher", "store", "subset", "run"]
    path: str
    facts: Mapping[str, JSON]
    """The content of its manifest, and what was counted."""
    unfinished: str | None
    """What is missing and how to continue; None if it is whole."""

    def to_json(self) -> dict[str, JSON]:
        """Return the facts as keys of the object."""
        content: dict[str, JSON] = {"kind": self.kind, "path": self.path, **self.facts}
        return content if self.unfinished is None else content | {"unfinished": self.unfinished}


@dataclass(frozen=True, kw_only=True)
class StatusItem(Result):
    """One thing that a workspace holds."""

    name: str
    """Path in the workspace."""
    kind: str
    about: str
    """Description in one line."""
    wrong: str | None
    """Why it cannot be used: unfinished, stale or damaged; None if it can."""


@dataclass(frozen=True, kw_only=True)
class StatusResult(Result):
    """What a workspace holds, and what to run next."""

    workspace: Path
    holds: tuple[StatusItem, ...]
    next: str
    """The next command, and why."""

    def to_json(self) -> dict[str, JSON]:
        """Return the JSON object, with the items by name."""
        return {
            "workspace": str(self.workspace),
            "holds": {
                item.name: {"kind": item.kind, "about": item.about, "wrong": item.wrong}
                for item in self.holds
            },
            "next": self.next,
        }
