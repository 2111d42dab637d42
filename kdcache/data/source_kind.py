"""Define a kind of source: how it recognises the value of SOURCE, and how it is opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from kdcache.data.file_content import IMAGE_SUFFIXES
from kdcache.data.source import Source
from kdcache.data.walk import Tree


@dataclass(frozen=True)
class Argument:
    """The value of SOURCE."""

    text: str

    @property
    def path(self) -> Path:
        """The text as a path; it need not exist."""
        return Path(self.text)

    @cached_property
    def endings(self) -> set[str]:
        """The last two suffixes, such as ".tar.gz", of the visible files below a folder."""
        return {"".join(Path(name).suffixes[-2:]).lower() for _, name in self._files}

    @cached_property
    def holds_class_folders(self) -> bool:
        """True if images lie in several folders below a folder."""
        folders = {
            folder for folder, name in self._files if Path(name).suffix.lower() in IMAGE_SUFFIXES
        }
        return len(folders) > 1

    @cached_property
    def _files(self) -> list[tuple[str, str]]:
        """The visible files below a folder, as folder and name."""
        if not self.path.is_dir():
            return []
        return [
            (path.rpartition("/")[0], path.rpartition("/")[2]) for path in Tree(self.path).files()
        ]


class SourceKind(NamedTuple):
    """One kind of source."""

    description: str
    """The values of SOURCE that this kind takes, for the message that lists all kinds."""
    recognises: Callable[[Argument], bool]
    open: Callable[[Argument, str | None], Source]
    """Opens a source; the second argument is the label's column or field, or None."""
    has_label_key: bool = False
    """True if the label may stand in one of several columns or fields."""
