"""A name with values, as options take it: `topk(k=10)`, `rrc(scale=(0.08, 1), flip)`, `0.9`.

Python's own parser reads more than is meant, and does not say where a text goes wrong.
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
"""Of a whole number; with more it is larger than any float."""


class Word(str):
    """A name that stands for itself, such as `flip`."""

    __slots__ = ()


Value = int | float | bool | Word | tuple[int | float, ...]


class Argument(NamedTuple):
    """One value of a call."""

    name: str | None
    """By which it was given, such as `k` of `k=10`."""
    value: Value
    offset: int
    """Of its first character, from 0."""
    value_offset: int
    """Of the first character of its value."""


class Call(NamedTuple):
    """What was token."""

    name: str
    """Empty for a number alone, which is the only argument then."""
    arguments: list[Argument]
    end: int
    """Characters of the whole."""


class CallError(ValueError):
    """A text that cannot be read."""

    def __init__(self, expected: str, offset: int) -> None:
        super().__init__(f"expected {expected} at character {offset + 1}")


def parse_call(text: str, names: Collection[str]) -> Call:
    """Read `name`, `name(1, 2)`, `name(first=1, second=(1, 2), word)`, or a number alone.

    Args:
        text: as it was given.
        names: those that are known; with "" among them, a number alone may stand for one.

    Raises:
        CallError: says what was expected at which character, from 1.
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
    """Return what could stand where a name stands that is not of the form, or was given before."""
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
    """Takes one token after the other and knows where it stands."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._next = 0
        self.offset = 0
        """Of the token that was taken last."""

    def comes(self, kind: str) -> bool:
        """Return whether the next token is of a kind."""
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
