"""The result of `kdcache run`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict

from kdcache.results import JSON, Result, as_json


class MeanAndStd(TypedDict):
    """An accuracy over several seeds, in percent; `std` has the divisor n - 1."""

    mean: float
    std: float


Accuracy: TypeAlias = float | MeanAndStd | None
"""An accuracy in percent; None without an evaluation split."""


@dataclass(frozen=True, kw_only=True)
class StudentFigures(Result):
    """The main figures of a `train` step, for one student or over several seeds."""

    samples: int | None
    """Training images per epoch; None for several seeds."""
    top1: Accuracy
    top1_best: Accuracy
    top5: Accuracy
    teacher_forwards: int | None
    """Images that a teacher saw during the training; None for several seeds."""
    images_per_second: float | None
    """None for several seeds."""

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> StudentFigures:
        """Return the figures in the JSON object of `kdcache train`."""
        return cls(**{one.name: result.get(one.name) for one in fields(cls)})


@dataclass(frozen=True, kw_only=True)
class StepResult(Result):
    """What `run` did with one step of a pipeline."""

    name: str
    """Name of the step, unique in the pipeline."""
    command: str
    did: Literal["ran", "up to date", "would run"]
    why: str | None
    """Why the step had to run; None if it was up to date."""
    seconds: float | None
    """Duration, if it ran."""
    student: StudentFigures | None
    """For a `train` step that ran, now or before: its main figures."""


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
                step.name: step.student.to_json() for step in self.steps if step.student is not None
            },
        }
