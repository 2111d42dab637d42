"""Parse an option's name with values: `topk(k=10)`, `rrc(scale=(0.08, 1), flip)`, `0.9`.

Python's own parser accepts more than this, and its errors do not point into the text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

_TOKEN = re.compile(
    r"\s*(?:(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
    r"|(?P<name>[A-Za-z_][\w-]*)|(?P<mark>[(),=])|(?P<end>\Z))"
)
_KINDS = {"name": "a name", "number": "a number", "end": "the end"}
_VALUE = ("name", "number", "(")
_TRUTH = {"True": True, "False": False}
_MAX_INT_DIGITS = 300
"""Maximum number of digits of an integer; a longer one may exceed every float."""


class Word(str):
    """A bare word, such as `flip`."""

    __slots__ = ()


Value = int | float | bool | Word | tuple[int | float, ...]


class Argument(NamedTuple):
    """One value of a call."""

    name: str | None
    """Name of a keyword argument, such as `k` in `k=10`; None for a positional one."""
    value: Value
    offset: int
    """Index of the argument's first character, from 0."""
    value_offset: int
    """Index of the value's first character, from 0."""


class Call(NamedTuple):
    """A parsed text."""

    name: str
    """Name of the call; empty for a single number, which is then the only argument."""
    arguments: list[Argument]
    end: int
    """Number of characters up to the end of the call."""


class CallError(ValueError):
    """An error in the text of a call."""

    def __init__(self, expected: str, offset: int) -> None:
        super().__init__(f"expected {expected} at character {offset + 1}")


def parse_call(text: str, names: Collection[str]) -> Call:
    """Parse `name`, `name(1, 2)`, `name(first=1, second=(1, 2), word)`, or a single number.

    Args:
        text: the text to parse.
        names: the known names; "" among them allows a single number.

    Raises:
        CallError: names what was expected at which character, counted from 1.
    """
    reader = _Reader(text)
    kind, token = reader.take("name", "number")
    if (token if kind == "name" else "") not in names:
        raise CallError(f"one of {', '.join(name for name in names if name)}", reader.offset)
    if kind == "number":
        alone = Argument(None, _number(token), reader.offset, reader.offset)
        reader.take("end")
        return Call("", [alone], reader.offset)
    name, arguments = token, []
    kind, _ = reader.take("(", "end")
    if kind == "(":
        kind, token = reader.take(*_VALUE, ")")
        while kind != ")":
            arguments.append(_argument(reader, kind, token))
            kind, token = reader.take(",", ")")
            if kind == ",":
                kind, token = reader.take(*_VALUE)
        reader.take("end")
    return Call(name, arguments, reader.offset)


def unused_names(form: Mapping[str, object], given: Mapping[str, object]) -> str:
    """Return the names that are still allowed, for the message of an unknown or repeated name."""
    return " or ".join(name for name in form if name not in given) or '")"'


def _argument(reader: _Reader, kind: str, token: str) -> Argument:
    name, offset = None, reader.offset
    if kind == "name" and reader.comes("="):
        name = token
        reader.take("=")
        kind, token = reader.take(*_VALUE)
    value_offset = reader.offset
    if kind == "name":
        return Argument(name, _TRUTH.get(token, Word(token)), offset, value_offset)
    if kind == "number":
        return Argument(name, _number(token), offset, value_offset)
    numbers = []
    while kind != ")":
        numbers.append(_number(reader.take("number")[1]))
        kind, _ = reader.take(",", ")")
    return Argument(name, tuple(numbers), offset, value_offset)


def _number(token: str) -> int | float:
    digits = token.lstrip("+-")
    return int(token) if digits.isdigit() and len(digits) <= _MAX_INT_DIGITS else float(token)


class _Reader:
    """Splits a text into tokens."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._next = 0
        self.offset = 0
        """Index of the last token's first character."""

    def comes(self, kind: str) -> bool:
        """Return True if the next token is of the given kind."""
        return self._look()[0] == kind

    def take(self, *kinds: str) -> tuple[str, str]:
        """Return the next token's kind and text; marks are kinds of their own."""
        kind, token, self.offset = self._look()
        if kind not in kinds:
            expected = " or ".join(_KINDS.get(one, f'"{one}"') for one in kinds)
            raise CallError(expected, self.offset)
        self._next = self.offset + len(token)
        return kind, token

    def _look(self) -> tuple[str, str, int]:
        match = _TOKEN.match(self._text, self._next)
        if match is None:
            rest = self._text[self._next :]
            return "", "", self._next + len(rest) - len(rest.lstrip())
        group = str(match.lastgroup)
        token = match[group]
        return token if group == "mark" else group, token, match.start(group)
