"""Check every value of a grid before anything runs, with the checks of the commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cyclopts import CycloptsError

from kdcache.commands import parse
from kdcache.errors import ConfigError, KDCacheError, python_line
from kdcache.options import CommonOptions, TrainOptions
from kdcache.pipeline_runs.pipeline import command_words
from kdcache.studies.cells import Cell
from kdcache.studies.needs import Plan

_ASSUMED_SAMPLES = 1_000
"""Number of kept samples that the checks assume; the real one is known when the data are packed."""


def check_teachers(teachers: Mapping[str, Mapping[str, Any]]) -> None:
    """Check the definition of every teacher of a grid.

    Raises:
        ConfigError: if a model or an option is unknown, or a value is out of range.
    """
    from kdcache.models.registry import require_trainable

    for name, definition in teachers.items():
        options = {key: value for key, value in definition.items() if key != "epoch"}
        where = f"[teachers.{name}]"
        reserved = ("workspace", "json", "quiet", "name", "save_epochs", "overwrite", "num_workers")
        if refused := [key for key in reserved if key in options]:
            raise ConfigError(f"{where} sets {refused[0]}, which the study sets itself. Remove it")
        _parsed(["train-teacher", *command_words(options, "train-teacher")], where)
        try:
            require_trainable(definition["model"], parameter="model")
        except KDCacheError as error:
            raise ConfigError(f"{where}: {python_line(error)}") from error


def check_cells(cells: Sequence[Cell], plan: Plan) -> None:
    """Check the settings of every cell.

    Raises:
        ConfigError: if a value is unknown or out of range, or values do not fit together. The
            message names the block.
    """
    from kdcache.models.registry import require_trainable
    from kdcache.training.losses.settings import LossSettings

    checked: set[tuple[str, ...]] = set()
    for cell in cells:
        settings = dict(cell.settings) | {"seed": 0}
        one = Cell(settings, cell.teachers, cell.block)
        commands = [plan.train_words(one, samples=_ASSUMED_SAMPLES)]
        if settings["method"] != "all":
            commands.append(plan.select_words(settings))
        for words in commands:
            if tuple(words) in checked:
                continue
            checked.add(tuple(words))
            where = f"block {cell.block!r}"
            options = _parsed(words, where)
            if isinstance(options, TrainOptions):
                try:
                    require_trainable(settings["student"], parameter="student")
                    LossSettings.of(options)
                except KDCacheError as error:
                    raise ConfigError(f"{where}: {python_line(error)}") from error


def _parsed(words: Sequence[str], where: str) -> CommonOptions:
    try:
        line = parse(words)
    except (CycloptsError, ConfigError) as error:
        raise ConfigError(f"{where}: {python_line(error)}") from error
    assert line is not None  # noqa: S101  (the words do not contain --help)
    return line.options
