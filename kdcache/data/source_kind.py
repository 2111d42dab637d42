"""Define a kind of source: how it recognises the value of SOURCE, and how it is opened."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from kdcache.data.source import Source


@dataclass(frozen=True)
class Argument:
    """The value of SOURCE."""

    text: str

    @property
    def path(self) -> Path:
        """The text as a path; it need not exist."""
        return Path(self.text)

    @cached_property
    def suffixes(self) -> set[str]:
        """The suffix of a file, or those of all files below a folder."""
        if not self.path.is_dir():
            return {self.path.suffix.lower()}
        return {
            os.path.splitext(name)[1].lower()  # noqa: PTH122
            for _, _, names in os.walk(self.path)
            for name in names
        }


class SourceKind(NamedTuple):
    """One kind of source."""

    description: str
    """The values of SOURCE that this kind takes, for the message that lists all kinds."""
    recognises: Callable[[Argument], bool]
    open: Callable[[Argument, str | None], Source]
    """Opens a source; the second argument is the label's column or field, or None."""
    has_label_key: bool = False
    """True if the label may stand in one of several columns or fields."""
