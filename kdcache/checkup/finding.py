"""What a check found, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "note", "ok"]
"""error: the walk on the digits, or training on the GPU that is there, would fail."""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    level: Level
    check: str
    """What was checked, such as "open files"."""
    found: str
    """Values in one line."""
    remedy: str | None = None
    """What to do, in lower case; None where nothing is to be done."""

    @property
    def about(self) -> dict[str, str]:
        """What it says beside level and check, as JSON content."""
        remedy = {} if self.remedy is None else {"remedy": self.remedy}
        return {"found": self.found} | remedy


def ok(check: str, found: str) -> Finding:
    """Return a finding that needs no remedy."""
    return Finding("ok", check, found)


def note(check: str, found: str, remedy: str) -> Finding:
    """Return a finding that slows kdcache down or will limit larger work."""
    return Finding("note", check, found, remedy)


def error(check: str, found: str, remedy: str) -> Finding:
    """Return a finding that keeps kdcache from working."""
    return Finding("error", check, found, remedy)


def reason(exception: BaseException) -> str:
    """Return an exception as one line: its first line that says something, and its type."""
    lines = [line.strip() for line in str(exception).splitlines() if line.strip()]
    return f"{type(exception).__name__}: {lines[0]}" if lines else type(exception).__name__
