"""Parse the values of `--alpha` and `--loss`, such as `linear(0.9, 0.5)` or `dkd(beta=8)`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from kdcache.calls import Call, CallError, parse_call, unused_names
from kdcache.errors import ConfigError


class Form(NamedTuple):
    """A parsed value: a name and its numbers."""

    name: str
    """Empty for a number without a name; `numbers` then has the key `value`."""
    numbers: dict[str, float]
    """Every number of the form by name, in the order of the form."""

    def __str__(self) -> str:
        if not self.name:
            return format_number(self.numbers["value"])
        words = ", ".join(
            f"{name}={format_number(number)}" for name, number in self.numbers.items()
        )
        return f"{self.name}({words})" if words else self.name


def parse_form(text: str, forms: Mapping[str, Mapping[str, float | None]], *, option: str) -> Form:
    """Parse `name`, `name(1, 2)`, `name(first=1)` or, if `forms` has the key "", a number.

    Args:
        text: the text.
        forms: name of a form -> name of a number -> its default, or None if it is required.
        option: the option, for error messages.

    Raises:
        ConfigError: if the text has another form. The message names the position of the first
            wrong character, counted from 1, and what was expected there.
    """
    try:
        call = parse_call(text, forms)
        numbers = _numbers(call, forms[call.name] if call.name else {"value": None})
    except CallError as error:
        known = ", ".join(_format_form(name, form) for name, form in forms.items())
        raise ConfigError(
            parameter=option, value=text, problem=str(error), remedy=f"It takes: {known}"
        ) from error
    return Form(call.name, numbers)


def format_number(number: float) -> str:
    """Format a number with as few digits as preserve its value."""
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


def _numbers(call: Call, form: Mapping[str, float | None]) -> dict[str, float]:
    """Return every number of a form by name, in the order of the form."""
    given: dict[str, float] = {}
    for name, value, offset, value_offset in call.arguments:
        if name is None:
            if len(given) == len(form):
                raise CallError(f"at most {len(form)} numbers", offset)
            name = list(form)[len(given)]  # noqa: PLW2901
            if name in given:
                raise CallError(f"a name: {name} was given by name before", offset)
        elif name not in form or name in given:
            raise CallError(unused_names(form, given), offset)
        if type(value) not in {int, float}:
            raise CallError("a number", value_offset)
        given[name] = float(value)  # type: ignore[arg-type]
    numbers: dict[str, float] = {}
    for name, default in form.items():
        number = given.get(name, default)
        if number is None:
            raise CallError(f"{call.name}({', '.join(form)}) with {name}", call.end)
        numbers[name] = number
    return numbers


def _format_form(name: str, form: Mapping[str, float | None]) -> str:
    if not name:
        return "a number"
    words = ", ".join(
        word if default is None else f"{word}={default:g}" for word, default in form.items()
    )
    return f"{name}({words})" if words else name
