"""The result of a check: what it found, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "note", "ok"]
"""error: the digits example of the README, or training on this machine's GPU, would fail."""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    level: Level
    check: str
    """Name of the check, such as "open files"."""
    found: str
    """The values that were found, in one line."""
    remedy: str | None = None
    """What to do, in lower case; None if there is nothing to do."""

    @property
    def about(self) -> dict[str, str]:
        """`found` and, if there is one, `remedy`, as JSON content."""
        remedy = {} if self.remedy is None else {"remedy": self.remedy}
        return {"found": self.found} | remedy


def ok(check: str, found: str) -> Finding:
    """Return a finding that needs no remedy."""
    return Finding("ok", check, found)


def note(check: str, found: str, remedy: str) -> Finding:
    """Return a finding about something that slows kdcache down or limits larger data sets."""
    return Finding("note", check, found, remedy)


def error(check: str, found: str, remedy: str) -> Finding:
    """Return a finding about something that makes kdcache fail."""
    return Finding("error", check, found, remedy)


def reason(exception: BaseException) -> str:
    """Return an exception as one line: its type and the first non-empty line of its message."""
    lines = [line.strip() for line in str(exception).splitlines() if line.strip()]
    return f"{type(exception).__name__}: {lines[0]}" if lines else type(exception).__name__
