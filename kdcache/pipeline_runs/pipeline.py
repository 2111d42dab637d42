"""A recipe: the commands of a walk with their options, in the order in which they run.

A TOML file of [[stage]] tables. `run` names the command, `name` is how the stage is called in what
is printed, and every other key is an option of that command, under the same rules:

    [[stage]]
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
from kdcache.errors import ConfigError
from kdcache.options import CommonOptions

COMMANDS = ("pack", "train-teacher", "build-logits", "select", "train")

_RECIPE = "[[stage]] tables alone, each with run = COMMAND"
_OF_THE_WHOLE = frozenset({"workspace", "json", "quiet", "help", "version"})


class Step(NamedTuple):
    """One command of a recipe."""

    name: str
    """Different for each."""
    command: str
    options: CommonOptions


def bundled_pipelines() -> Path:
    """Return the folder of the recipes that come with kdcache.

    It is inside an installed package, and beside the package in a checkout. Beside an installed
    package a folder of this name would be another package's.
    """
    package = Path(__file__).parents[1]
    inside = package / "pipelines"
    return inside if inside.is_dir() else package.parent / "pipelines"


def find_pipeline(name: str) -> Path:
    """Return the file of one of our recipes by its name, or the path that was given.

    Raises:
        ConfigError: if there is none; lists ours.
    """
    given = Path(name)
    if given.suffix == ".toml":
        if not given.is_file():
            raise ConfigError(f"{name} does not exist, expected a recipe")
        return given
    ours = {path.stem: path for path in sorted(bundled_pipelines().glob("*.toml"))}
    if name not in ours:
        raise ConfigError(
            f"recipe is {name}, expected one of {', '.join(sorted(ours))}, or the path of a .toml"
        )
    return ours[name]


def read_pipeline(path: Path, *, workspace: Path, quiet: bool, source: str | None) -> list[Step]:
    """Return the stages of a recipe.

    Args:
        path: of the TOML file.
        workspace: of every stage.
        quiet: of every stage.
        source: what is packed, instead of what the recipe says.

    Raises:
        ConfigError: if it is no recipe, or an option is wrong; names file and stage.
    """
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no recipe ({error!r}), expected {_RECIPE}") from error
    tables = _tables(path, content)
    if source is not None and not any(table.get("run") == "pack" for table in tables):
        raise ConfigError(
            f"--source is {source}, but {path} has no stage that packs. Leave the option out"
        )
    common = [f"--workspace={workspace}", *(["--quiet"] if quiet else [])]
    stages: list[Step] = []
    for number, table in enumerate(tables, 1):
        about = f"stage {number} of {path}"
        command = table.get("run")
        if command not in COMMANDS:
            raise ConfigError(f"run of {about} is {command!r}, expected {', '.join(COMMANDS)}")
        given = {key: value for key, value in table.items() if key not in {"run", "name"}}
        if refused := sorted(_OF_THE_WHOLE & given.keys()):
            raise ConfigError(
                f"{about} has {refused[0]} = {given[refused[0]]!r}, expected options of {command}. "
                f"Say it of all stages: kdcache run RECIPE --{refused[0]}"
            )
        if command == "pack" and source is not None:
            given["source"] = source
        if command == "pack" and not given.keys() & {"source", "subset"}:
            raise ConfigError(
                f"{about}, pack: --source is not given, expected where the images are. Run: "
                "kdcache run RECIPE --source SOURCE"
            )
        try:
            options = parse([command, *command_words(given, command), *common])
        except (CycloptsError, ConfigError) as error:
            said = " ".join(str(error).split())
            raise ConfigError(f"{about}, {command}: {said}") from error
        assert options is not None  # noqa: S101  (no --help among the words)
        stages.append(Step(_name(table, stages), command, options))
    return stages


def _tables(path: Path, content: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the stages of a TOML file, if it holds these and nothing else."""
    tables = content.get("stage")
    if other := sorted(content.keys() - {"stage"}):
        raise ConfigError(f"{path} is no recipe: it holds {other[0]}, expected {_RECIPE}")
    if not (isinstance(tables, list) and tables and all(isinstance(t, dict) for t in tables)):
        raise ConfigError(f"{path} is no recipe: stage is {tables!r}, expected {_RECIPE}")
    return tables


def _name(table: Mapping[str, Any], before: list[Step]) -> str:
    wanted = str(table.get("name", table["run"]))
    names = {stage.name for stage in before}
    return next(
        name
        for name in (wanted, *(f"{wanted} {number}" for number in range(2, len(before) + 2)))
        if name not in names
    )


def command_words(table: Mapping[str, Any], command: str) -> list[str]:
    """Return a table as the command line says it."""
    kind, _ = EVERY_COMMAND[command]
    is_off = {field.name for field in fields(kind) if field.default is False}
    words = []
    for key, value in table.items():
        option = key.replace("_", "-")
        if value is True:
            words.append(f"--{option}")
        elif value is False and option.replace("-", "_") in is_off:
            continue  # the command line has no word for what is so anyway
        elif value is False:
            words.append(f"--no-{option}")
        else:
            several = value if isinstance(value, list) else [value]
            words += [f"--{option}={item}" for item in several]
    return words
