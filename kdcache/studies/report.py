"""The result of `kdcache study`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdcache.results import JSON, Result, as_json


@dataclass(frozen=True, kw_only=True)
class ArmResult(Result):
    """The students of one entry of a study's table. Accuracies are in percent."""

    row: str
    column: str
    mean: float | None
    """None if the arm has no student."""
    standard_error: float | None
    """None for fewer than two students."""
    n: int
    difference: float | None
    """Mean difference to the arm in the first row, over the seeds of both."""
    difference_standard_error: float | None
    pairs: int
    """Number of seeds of both arms."""


@dataclass(frozen=True, kw_only=True)
class StudyResult(Result):
    """The students that `study` trained, or with `table` the table of the results."""

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
    """The entries of the table."""
    plot: Path | None = None
    """The figure."""
    dry_run: bool = False

    def to_json(self) -> dict[str, JSON]:
        """Return the JSON object; its keys depend on `table` and `dry_run`."""
        if self.table is not None:
            keys = ["table", "difference", "arms", "failed", "plot"]
            keys = [key for key in keys if getattr(self, key) is not None]
        elif self.dry_run:
            keys = ["cells", "left"]
        else:
            keys = ["results", "cells", "trained", "failed", "left", "stopped"]
        return {key: as_json(getattr(self, key)) for key in keys}
