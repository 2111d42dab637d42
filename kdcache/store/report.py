"""The result of `kdcache build-logits`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdcache.compute.figures import Quality
from kdcache.results import Result


@dataclass(frozen=True, kw_only=True)
class PassCost(Result):
    """The expected and the actual cost of a teacher pass."""

    expected_seconds: float
    """Estimate before the pass, from warm batches."""
    seconds: float
    """Measured duration of the pass."""
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
    """Rows per augmented view."""
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
