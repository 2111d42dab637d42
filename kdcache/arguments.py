"""Check numbers that a call from Python gives, and name the argument if one does not fit."""

from __future__ import annotations

import math
import numbers
import operator

from kdcache.errors import ConfigError


def require_int(
    name: str, value: object, *, minimum: int | None = None, maximum: int | None = None
) -> int:
    """Return an argument as an int; integers of numpy and torch count.

    Args:
        name: name of the argument.
        value: what was given for it.
        minimum: its smallest value, if it has one.
        maximum: its largest value, if it has one.

    Raises:
        ConfigError: if the value is no integer, such as 1.5, "1" or True, or is out of range.
    """
    rule = f"an integer{_range(minimum, maximum)}"
    try:
        # bool is an int for Python, but nobody means batch_size=True.
        number = operator.index(None if isinstance(value, bool) else value)  # type: ignore[arg-type]
    except TypeError:
        raise ConfigError(
            parameter=name, value=_told(value), rule=f"{rule}, not {type(value).__name__}"
        ) from None
    if (minimum is not None and number < minimum) or (maximum is not None and number > maximum):
        raise ConfigError(parameter=name, value=number, rule=rule)
    return number


def require_positive(name: str, value: object) -> float:
    """Return an argument as a finite float above 0; numbers of numpy count.

    Raises:
        ConfigError: if the value is no number, or is not finite, or not above 0.
    """
    rule = "a finite number above 0"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ConfigError(
            parameter=name, value=_told(value), rule=f"{rule}, not {type(value).__name__}"
        )
    number = float(value)
    if not 0 < number < math.inf:
        raise ConfigError(parameter=name, value=number, rule=rule)
    return number


def _range(minimum: int | None, maximum: int | None) -> str:
    if minimum is None and maximum is None:
        return ""
    if maximum is None:
        return f" of at least {minimum}"
    return f" of at most {maximum}" if minimum is None else f" in [{minimum}, {maximum}]"


def _told(value: object) -> object:
    """Return a value for a message; an error without a value reads "is not given"."""
    return "None" if value is None else value
