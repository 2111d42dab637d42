"""Tables of a study: mean, standard error and n, and differences paired by seed.

Each entry of a table pools one arm: results that differ in their seed only. A difference in any
other setting is an error, unless that setting stands in the rows or columns.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kdcache.errors import ConfigError
from kdcache.options import StudyOptions
from kdcache.progress import logger
from kdcache.studies.cells import TYPES
from kdcache.studies.grid import Grid
from kdcache.studies.report import ArmResult, StudyResult
from kdcache.studies.results import Results

MIN_VALUES = 2
"""A standard error needs at least this many values."""

_ARM_SETTINGS = tuple(name for name in TYPES if name != "seed")

_ORIGIN_COLUMNS = ("data_digest", "teacher_digest", "store_digest", "formats")
"""If one of these differs within an arm, its results are not comparable."""

_MAX_SHOWN = 4

RowColumn = tuple[str, str]
"""Labels of a row and a column."""


class Summary(NamedTuple):
    """Accuracies of some students, in percent."""

    mean: float
    standard_error: float | None
    """None for a single value."""
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """Summarise values (at least one); the standard deviation has the divisor n - 1."""
        error = None
        if len(values) >= MIN_VALUES:
            error = statistics.stdev(values) / math.sqrt(len(values))
        return cls(statistics.fmean(values), error, len(values))

    def text(self, *, sign: bool = False) -> str:
        """Return the summary as text, such as `62.10 ± 0.12 (5)`."""
        mean = f"{self.mean:+.2f}" if sign else f"{self.mean:.2f}"
        error = "" if self.standard_error is None else f" ± {self.standard_error:.2f}"
        return f"{mean}{error} ({self.n})"


class Table(NamedTuple):
    """Top-1 accuracies after the last epoch, by two groups of settings."""

    rows: list[str]
    columns: list[str]
    values: dict[RowColumn, dict[int, float]]
    """(row, column) -> seed -> accuracy in percent."""

    def summary(self, row: str, column: str) -> Summary | None:
        """Return the summary of an arm; None if it has no results."""
        values = self.values.get((row, column))
        return Summary.of(list(values.values())) if values else None

    def difference(self, row: str, column: str) -> Summary | None:
        """Return an arm minus the arm in the first row, over the seeds that both have."""
        one, other = (self.values.get((name, column), {}) for name in (row, self.rows[0]))
        seeds = sorted(one.keys() & other.keys())
        return Summary.of([one[seed] - other[seed] for seed in seeds]) if seeds else None


def show_table(results: Results, grid: Grid, options: StudyOptions) -> tuple[Table, StudyResult]:
    """Make the table of `--table` and `--where` from the results of a grid.

    Returns:
        The table, and the result of the command without its figure.

    Raises:
        ConfigError: if a setting is unknown, no student is left, or an arm pools students that
            differ in more than their seed.
    """
    assert options.table is not None  # noqa: S101  (the caller has checked)
    order = {cell.id: index for index, cell in enumerate(grid.cells)}
    found = [row for row in results.rows() if row["cell"] in order and _agrees(row, options.where)]
    found.sort(key=lambda row: order[row["cell"]])
    done = [row for row in found if row["status"] == "ok"]
    if not done:
        raise ConfigError(
            f"{results.path} has no trained student that matches, expected at least one. Run "
            "kdcache study without --table, or change --block and --where",
            parameter="table",
        )
    table = table_of(done, options.table[0].split(","), options.table[1].split(","))
    _warn_of_origins(done, options.table[0].split(","), options.table[1].split(","))
    difference = f"to {table.rows[0]}, paired by seed\n" + _text(table, differences=True)
    return table, StudyResult(
        results=results.path.resolve(),
        cells=len(order),
        left=len(order.keys() - {row["cell"] for row in found}),
        failed=len(found) - len(done),
        table="\n" + _text(table, differences=False),
        difference=difference if len(table.rows) > 1 else None,
        arms=tuple(_arm(table, row, column) for row in table.rows for column in table.columns),
    )


def table_of(
    found: Sequence[Mapping[str, Any]], row_names: Sequence[str], column_names: Sequence[str]
) -> Table:
    """Arrange results in a table.

    Args:
        found: results of trained students, in the order of the grid.
        row_names: settings whose values label the rows.
        column_names: settings whose values label the columns.

    Raises:
        ConfigError: if a setting is unknown, or an arm pools students that differ in more than
            their seed.
    """
    rows: dict[str, None] = {}
    columns: dict[str, None] = {}
    arms: dict[RowColumn, list[Mapping[str, Any]]] = {}
    for result in found:
        key = _label(result, row_names), _label(result, column_names)
        rows.setdefault(key[0])
        columns.setdefault(key[1])
        arms.setdefault(key, []).append(result)
    for key, pooled in arms.items():
        _require_one_arm(key, pooled)
    values = {
        key: {result["seed"]: result["top1_last"] for result in pooled}
        for key, pooled in arms.items()
    }
    return Table(list(rows), list(columns), values)


def _require_one_arm(key: RowColumn, pooled: Sequence[Mapping[str, Any]]) -> None:
    for name in (*_ARM_SETTINGS, "options"):
        values = list(dict.fromkeys(str(setting(row, name)) for row in pooled))
        if len(values) > 1:
            shown = ", ".join(values[:_MAX_SHOWN])
            raise ConfigError(
                f"--table pools students of {name} {shown} in ({key[0]}; {key[1]}), expected one "
                f"value. Add {name} to the rows or columns, or choose with --where or --block",
                parameter="table",
            )


def _warn_of_origins(
    found: Sequence[Mapping[str, Any]], row_names: Sequence[str], column_names: Sequence[str]
) -> None:
    """Warn if the students of an arm differ in their data, teacher, store or formats."""
    arms: dict[RowColumn, list[Mapping[str, Any]]] = {}
    for result in found:
        key = _label(result, row_names), _label(result, column_names)
        arms.setdefault(key, []).append(result)
    for name in _ORIGIN_COLUMNS:
        mixed = [key for key, rows in arms.items() if len({row[name] for row in rows}) > 1]
        if mixed:
            logger.warning(
                "%d arms pool students with different %s, so their results are not comparable; "
                "the first is (%s)",
                len(mixed),
                name,
                "; ".join(mixed[0]),
            )


def setting(row: Mapping[str, Any], name: str) -> Any:
    """Return the value of a setting in a row of results.

    Raises:
        ConfigError: if there is no setting of this name.
    """
    if name in row:
        return row[name]
    others = json.loads(row["options"] or "{}")
    if name not in others and name not in _known_options():
        known = ", ".join((*TYPES, "arm", *_known_options()))
        raise ConfigError(f"{name} is not a setting of a student, expected one of {known}")
    return others.get(name)


def _known_options() -> tuple[str, ...]:
    from kdcache.studies.cells import SELECT_OPTIONS, TRAIN_OPTIONS

    return (*SELECT_OPTIONS, *TRAIN_OPTIONS)


def _agrees(row: Mapping[str, Any], conditions: Sequence[str]) -> bool:
    return all(
        _shown(setting(row, name)) in value.split(",")
        for name, _, value in (condition.partition("=") for condition in conditions)
    )


def _label(row: Mapping[str, Any], names: Sequence[str]) -> str:
    return ", ".join(_value_label(name, setting(row, name)) for name in names)


def _value_label(name: str, value: Any) -> str:
    """Return the label of a value, such as `random`, `no kd` or `keep 0.1`."""
    if isinstance(value, bool):
        return name if value else f"no {name}"
    if isinstance(value, str) and not value[:1].isdigit():
        return value
    return f"{name} {_shown(value)}"


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _text(table: Table, *, differences: bool) -> str:
    """Return aligned lines: a header and one line per row; differences leave out the first row."""
    rows = table.rows[1:] if differences else table.rows
    lines = [["", *table.columns]]
    for row in rows:
        line = [row]
        for column in table.columns:
            found = table.difference(row, column) if differences else table.summary(row, column)
            line.append("-" if found is None else found.text(sign=differences))
        lines.append(line)
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    return "\n".join(
        "  " + "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True))
        for line in lines
    )


def _arm(table: Table, row: str, column: str) -> ArmResult:
    found, difference = table.summary(row, column), table.difference(row, column)
    is_first = row == table.rows[0]
    if is_first:
        difference = None
    return ArmResult(
        row=row,
        column=column,
        mean=found.mean if found else None,
        standard_error=found.standard_error if found else None,
        n=found.n if found else 0,
        difference=difference.mean if difference else None,
        difference_standard_error=difference.standard_error if difference else None,
        pairs=difference.n if difference else 0,
    )
