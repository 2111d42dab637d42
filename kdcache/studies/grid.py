"""Read a grid, a TOML file of teachers and blocks, into an ordered list of cells.

tune_fraction = 0.1             # optional: for blocks with `tuning = true`

[teachers.big]                  # a teacher: a model and options of `kdcache train-teacher`
model = "resnet20"
epochs = 30

[teachers.early]                # the weights of another teacher after an earlier epoch
of = "big"
epoch = 5

[defaults]                      # settings of every block
data = "cifar100"
teacher = "big"

[[block]]                       # the Cartesian product of its lists
name = "random and medium"
priority = 1                    # blocks with smaller numbers run first
method = ["random", "medium"]
keep = [0.1, 0.3]
kd = [false, true]
seeds = 5                       # the same as seed = [0, 1, 2, 3, 4]
exclude = [{ method = "medium", keep = 0.1 }]

[[block]]                       # makes teachers and their stores, but trains no students
name = "teachers"
priority = 0
make = ["big", "early"]
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcache.errors import ConfigError, python_line
from kdcache.pipeline_runs.pipeline import bundled_pipelines
from kdcache.studies.cells import SETTINGS, Cell, known_settings, make_cell

_TOP_LEVEL_KEYS = frozenset({"tune_fraction", "teachers", "defaults", "block"})
_BLOCK_KEYS = frozenset({"name", "priority", "include", "exclude", "make", "tuning", "seeds"})


@dataclass(frozen=True)
class Block:
    """A named part of a grid.

    Attributes:
        name: unique in the grid.
        priority: blocks with smaller numbers run first.
        make: names of teachers to make; a block that makes teachers has no cells.
        data: names of the data sets that `make` applies to.
        tune_fraction: fraction of the training set held out to choose settings; the block's
            teachers are trained without it. None: nothing is held out.
        cells: in the order of the product.
    """

    name: str
    priority: int
    make: tuple[str, ...]
    data: tuple[str, ...]
    tune_fraction: float | None
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Grid:
    """The content of a TOML file.

    Attributes:
        name: the file's name without its suffix.
        teachers: name -> definition as JSON content: `model`, options of `kdcache train-teacher`,
            and `epoch` if the weights after an earlier epoch are meant.
        blocks: sorted by priority, then in the order of the file.
    """

    name: str
    teachers: Mapping[str, Mapping[str, Any]]
    blocks: tuple[Block, ...]

    @property
    def cells(self) -> list[Cell]:
        """Every cell once, in the order in which they run.

        Blocks of equal priority run seed by seed: the cells of the first seed, then those of the
        next. So an interrupted study has all arms with about equally many seeds.
        """
        cells: dict[str, Cell] = {}
        for _, blocks in itertools.groupby(self.blocks, key=lambda block: block.priority):
            together = [cell for block in blocks for cell in block.cells]
            for cell in sorted(together, key=lambda cell: int(cell.settings["seed"])):
                cells.setdefault(cell.id, cell)
        return list(cells.values())

    def only(self, names: Sequence[str]) -> Grid:
        """Return the grid with the named blocks only; without names, with all blocks.

        Raises:
            ConfigError: if a block does not exist.
        """
        known = [block.name for block in self.blocks]
        if unknown := [name for name in names if name not in known]:
            raise ConfigError(
                parameter="block", value=unknown[0], rule=f"one of {', '.join(known)}"
            )
        chosen = tuple(block for block in self.blocks if not names or block.name in names)
        return Grid(self.name, self.teachers, chosen)


def find_grid(name: str) -> Path:
    """Return the path of a grid.

    Args:
        name: a path that ends with .toml, or the name of a bundled grid.

    Raises:
        ConfigError: if it does not exist.
    """
    given = Path(name)
    if given.suffix == ".toml":
        if not given.is_file():
            raise ConfigError(f"GRID is {name}, expected a TOML file that exists")
        return given
    bundled = {path.stem: path for path in sorted((bundled_pipelines() / "studies").glob("*.toml"))}
    if name not in bundled:
        raise ConfigError(
            f"GRID is {name}, expected the path of a TOML file or a bundled grid: "
            f"{', '.join(bundled)}"
        )
    return bundled[name]


def read_grid(path: Path, *, tune_fraction: float | None = None) -> Grid:
    """Read a grid and check every value in it.

    Args:
        path: the TOML file.
        tune_fraction: if given, every cell is a tuning cell that holds out this fraction of the
            training set.

    Raises:
        ConfigError: if a value is unknown or out of range. The message names the value and its
            block or table.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not readable as TOML: {error}") from error
    _require_keys(f"{path}", content, _TOP_LEVEL_KEYS)
    teachers = _teachers(path, content.get("teachers", {}))
    defaults = _table(content.get("defaults", {}), f"[defaults] of {path}")
    tables = content.get("block", [])
    if not isinstance(tables, list) or not tables:
        raise ConfigError(f"{path} has no [[block]], expected at least one")
    blocks: list[Block] = []
    for number, table in enumerate(tables, 1):
        where = f"block {table.get('name', number)!r} of {path}"
        _require_keys(where, table, _BLOCK_KEYS | set(SETTINGS))
        fraction = tune_fraction
        if table.get("tuning", False) and fraction is None:
            fraction = content.get("tune_fraction")
            if fraction is None:
                raise ConfigError(
                    f"{where} has tuning = true, expected the fraction of the training set to hold "
                    "out. Set tune_fraction = 0.1 in the file, or pass --tune-fraction 0.1"
                )
        try:
            block = _block(table, defaults, teachers, fraction)
        except ConfigError as error:
            raise ConfigError(f"{where}: {python_line(error)}") from error
        if block.name in [other.name for other in blocks]:
            raise ConfigError(f"{where} has the same name as another block, expected unique names")
        blocks.append(block)
    blocks.sort(key=lambda block: block.priority)
    return Grid(path.stem, teachers, tuple(blocks))


def _teachers(path: Path, tables: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    teachers: dict[str, dict[str, Any]] = {}
    for name, table in tables.items():
        where = f"[teachers.{name}] of {path}"
        about = _table(table, where)
        if "of" not in about:
            if not isinstance(about.get("model"), str):
                raise ConfigError(f"{where} has no model, expected one such as 'resnet20'")
            teachers[name] = dict(about)
            continue
        _require_keys(where, about, frozenset({"of", "epoch"}))
        base = teachers.get(about["of"])
        if base is None or "epoch" in base:
            raise ConfigError(
                f"of is {about['of']!r} in {where}, expected a teacher that is defined above and "
                "has no epoch of its own"
            )
        epoch, last = about.get("epoch"), base.get("epochs", 0)
        if not isinstance(epoch, int) or not 0 < epoch < last:
            raise ConfigError(
                f"epoch is {epoch!r} in {where}, expected a number in [1, {last}): "
                f"{about['of']} has epochs = {last}"
            )
        teachers[name] = base | {"epoch": epoch}
    return teachers


def _block(
    table: Mapping[str, Any],
    defaults: Mapping[str, Any],
    teachers: Mapping[str, Mapping[str, Any]],
    tune_fraction: float | None,
) -> Block:
    given = dict(defaults) | dict(table)
    if "seeds" in given:
        seeds = given.pop("seeds")
        if not isinstance(seeds, int) or seeds < 1:
            raise ConfigError(f"seeds is {seeds!r}, expected a number above 0")
        given["seed"] = list(range(seeds))
    name, priority = table.get("name"), table.get("priority")
    if not isinstance(name, str) or not isinstance(priority, int):
        raise ConfigError(
            f"name is {name!r} and priority {priority!r}, expected a string and an integer"
        )
    values = {
        key: value if isinstance(value, list) else [value]
        for key, value in given.items()
        if key in SETTINGS
    }
    if tune_fraction is not None:
        values["tune_fraction"] = [tune_fraction]
    if empty := [key for key, choices in values.items() if not choices]:
        raise ConfigError(f"{empty[0]} is [], expected at least one value")
    make = tuple(given.get("make", ()))
    if unknown := [teacher for teacher in make if teacher not in teachers]:
        raise ConfigError(f"make names {unknown[0]!r}, expected one of {', '.join(teachers)}")
    if make:
        data = tuple(str(value) for value in values.get("data", []))
        return Block(name, priority, make, data, tune_fraction, ())
    combinations = list(_combinations(values))
    include = _conditions("include", given)
    exclude = _conditions("exclude", given)
    cells: dict[str, Cell] = {}
    for chosen in combinations:
        if include and not any(_matches(chosen, condition) for condition in include):
            continue
        if any(_matches(chosen, condition) for condition in exclude):
            continue
        cell = make_cell(chosen, teachers, block=name)
        cells.setdefault(cell.id, cell)
    if not cells:
        raise ConfigError("include and exclude leave no cell, expected at least one")
    return Block(name, priority, (), (), tune_fraction, tuple(cells.values()))


def _combinations(values: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for combination in itertools.product(*values.values()):
        yield dict(zip(values, combination, strict=True))


def _conditions(name: str, given: Mapping[str, Any]) -> list[dict[str, Any]]:
    conditions = given.get(name, [])
    if not isinstance(conditions, list):
        raise ConfigError(f"{name} is {conditions!r}, expected a list of tables")
    for condition in conditions:
        _require_keys(name, _table(condition, name), frozenset(SETTINGS))
    return conditions


def _matches(chosen: Mapping[str, Any], condition: Mapping[str, Any]) -> bool:
    """Return whether a combination has, for every key of a condition, one of its values."""
    return all(
        chosen.get(key) in (value if isinstance(value, list) else [value])
        for key, value in condition.items()
    )


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is {value!r}, expected a table")
    return value


def _require_keys(where: str, table: Mapping[str, Any], known: frozenset[str] | set[str]) -> None:
    if unknown := sorted(table.keys() - known):
        names = ", ".join(sorted(known - set(SETTINGS))) or "none"
        settings = f", or a setting: {known_settings()}" if known & set(SETTINGS) else ""
        raise ConfigError(f"{unknown[0]} is not a key of {where}, expected {names}{settings}")
