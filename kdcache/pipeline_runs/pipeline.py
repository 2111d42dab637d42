"""A pipeline: a TOML file that lists commands with their options, in the order in which they run.

The file holds one [[step]] table per command. `run` names the command. `name` is the step's name in
messages and results. Every other key is an option of that command, under the same rules:

    [[step]]
    run = "select"
    method = "medium"
    keep = 0.7
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from cyclopts import CycloptsError

from kdcache.commands import COMMANDS as EVERY_COMMAND
from kdcache.commands import parse
from kdcache.errors import ConfigError, python_line
from kdcache.options import CommonOptions
from kdcache.progress import logger

COMMANDS = ("pack", "train-teacher", "build-logits", "select", "train")

_OLD_TABLE = "stage"
_EXPECTED = "[[step]] tables, each with run = COMMAND, and nothing else"
_OPTIONS_OF_RUN = frozenset({"workspace", "json", "quiet", "help", "version"})


class Step(NamedTuple):
    """One command of a pipeline."""

    name: str
    """Unique within the pipeline."""
    command: str
    options: CommonOptions


def bundled_pipelines() -> Path:
    """Return the folder of the pipelines that come with kdcache.

    In an installed package the folder lies inside the package; in a checkout it lies beside it.
    A folder of this name beside an installed package would belong to another package.
    """
    package = Path(__file__).parents[1]
    inside = package / "pipelines"
    return inside if inside.is_dir() else package.parent / "pipelines"


def find_pipeline(name: str) -> Path:
    """Return the file of a bundled pipeline by its name, or the path that was given.

    Raises:
        ConfigError: if there is no such file; the message lists the bundled pipelines.
    """
    given = Path(name)
    if given.suffix == ".toml":
        if not given.is_file():
            raise ConfigError(f"PIPELINE is {name}, expected a TOML file, but it does not exist")
        return given
    bundled = {path.stem: path for path in sorted(bundled_pipelines().glob("*.toml"))}
    if name not in bundled:
        raise ConfigError(
            f"PIPELINE is {name}, expected one of {', '.join(sorted(bundled))}, or the path of a "
            ".toml file"
        )
    return bundled[name]


def read_pipeline(path: Path, *, workspace: Path, source: str | None) -> list[Step]:
    """Read the steps of a pipeline and check their options.

    Args:
        path: the TOML file.
        workspace: the workspace that every step works in.
        source: the images to pack, instead of the pipeline's own source.

    Raises:
        ConfigError: if the file is not a pipeline, or an option is wrong; names file and step.
    """
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a pipeline ({error!r}), expected {_EXPECTED}") from error
    tables = _tables(path, content)
    if source is not None and not any(table.get("run") == "pack" for table in tables):
        raise ConfigError(
            parameter="source",
            value=source,
            problem=f"{path} has no pack step that would read it",
            remedy="Leave --source out",
        )
    steps: list[Step] = []
    for number, table in enumerate(tables, 1):
        where = f"step {number} of {path}"
        command = table.get("run")
        if command not in COMMANDS:
            raise ConfigError(f"run of {where} is {command!r}, expected {', '.join(COMMANDS)}")
        given = {key: value for key, value in table.items() if key not in {"run", "name"}}
        if refused := sorted(_OPTIONS_OF_RUN & given.keys()):
            raise ConfigError(
                f"{where} has {refused[0]} = {given[refused[0]]!r}, expected options of {command}. "
                f"Set it for all steps: kdcache run PIPELINE --{refused[0]}"
            )
        if command == "pack" and source is not None:
            given["source"] = source
        if command == "pack" and not given.keys() & {"source", "subset"}:
            raise ConfigError(
                f"{where}, pack: --source is not given, expected the path of the images. Run: "
                "kdcache run PIPELINE --source SOURCE"
            )
        try:
            line = parse([command, *command_words(given, command), f"--workspace={workspace}"])
        except (CycloptsError, ConfigError) as error:
            raise ConfigError(f"{where}, {command}: {python_line(error)}") from error
        assert line is not None  # noqa: S101  (no --help among the words)
        steps.append(Step(_unique_name(table, steps), command, line.options))
    return steps


def _tables(path: Path, content: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the step tables of a TOML file that holds nothing else."""
    key = "step"
    if _OLD_TABLE in content and key not in content:
        logger.warning(
            "%s: [[%s]] is the old name of [[step]] and works in this version only. Rename it",
            path,
            _OLD_TABLE,
        )
        key = _OLD_TABLE
    tables = content.get(key)
    if other := sorted(content.keys() - {key}):
        raise ConfigError(f"{path} is not a pipeline: it holds {other[0]}, expected {_EXPECTED}")
    if not (isinstance(tables, list) and tables and all(isinstance(t, dict) for t in tables)):
        raise ConfigError(f"{path} is not a pipeline: {key} is {tables!r}, expected {_EXPECTED}")
    return tables


def _unique_name(table: Mapping[str, Any], before: list[Step]) -> str:
    wanted = str(table.get("name", table["run"]))
    taken = {step.name for step in before}
    return next(
        name
        for name in (wanted, *(f"{wanted} {number}" for number in range(2, len(before) + 2)))
        if name not in taken
    )


def command_words(table: Mapping[str, Any], command: str) -> list[str]:
    """Return the command-line words for a table of options."""
    kind, _ = EVERY_COMMAND[command]
    is_off = {field.name for field in fields(kind) if field.default is False}
    words = []
    for key, value in table.items():
        option = key.replace("_", "-")
        if value is True:
            words.append(f"--{option}")
        elif value is False and option.replace("-", "_") in is_off:
            continue  # the option is off by default and has no --no- form
        elif value is False:
            words.append(f"--no-{option}")
        else:
            several = value if isinstance(value, list) else [value]
            words += [f"--{option}={item}" for item in several]
    return words
