"""What every command returns: a frozen dataclass, defined in the package of the command.

`to_json` gives what the command line prints with --json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeAlias

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
    """Base class of the results."""

    @property
    def is_failure(self) -> bool:
        """True if the command line ends with status 1 after printing this result."""
        return False

    def to_json(self) -> dict[str, JSON]:
        """Return the JSON object that `--json` prints."""
        return {one.name: as_json(getattr(self, one.name)) for one in fields(self)}
