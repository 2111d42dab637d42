"""The result of `kdcache run`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kdcache.results import JSON, Result, as_json

_STUDENT_KEYS = ("samples", "top1", "top1_best", "top5", "teacher_forwards", "images_per_second")


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
                if step.command == "train" and step.result
            },
        }
