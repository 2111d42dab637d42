"""List the files below a folder: hidden files, pipes and circles of links are kept apart.

Links to folders are followed unless their content is read anyway, so no image is read twice.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import NamedTuple

from kdcache.errors import DatasetError
from kdcache.options import DEFAULT_WORKSPACE

_SYSTEM_NAMES = frozenset(
    {
        *("@eadir", "@tmp", "#recycle", "#snapshot", "__macosx", "__pycache__", "lost+found"),
        *("$recycle.bin", "system volume information", "thumbs.db", "ehthumbs.db"),
        *("desktop.ini", "icon\r", DEFAULT_WORKSPACE.name),
    }
)
"""Names, in lower case, that operating systems and programs, kdcache too, give to their files."""

_SPECIAL = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISCHR, "a device"),
)


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, or belongs to the operating system."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def visible_folders(folder: Path) -> list[Path]:
    """Return the folders directly in `folder`, links included, hidden ones not, sorted by name."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not is_hidden(entry.name) and _is_folder(entry)]
    return [folder / name for name in sorted(names)]


class FileState(NamedTuple):
    """Size and time of change of a regular file."""

    size: int
    mtime_ns: int


def file_state(path: Path | str) -> FileState | str:
    """Return the state of a regular file, or what else the path is, such as "a named pipe".

    Raises:
        DatasetError: if it is a link to a file that does not exist, or to itself.
    """
    try:
        found = os.stat(path)  # noqa: PTH116  (a million calls)
    except OSError as error:
        if error.errno not in {errno.ENOENT, errno.ELOOP}:
            raise
        raise DatasetError(
            f"{path} is a broken link, expected an image. Mount or copy the file that it points "
            "to, or remove the link"
        ) from error
    if stat.S_ISREG(found.st_mode):
        return FileState(found.st_size, found.st_mtime_ns)
    return next((name for test, name in _SPECIAL if test(found.st_mode)), "no regular file")


class Tree:
    """The files below a folder, and what is kept apart.

    Args:
        root: the folder. Paths are relative to it.

    Attributes:
        hidden: hidden files, and all files below hidden folders.
        repeated: links to folders that are read already.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.hidden: list[str] = []
        self.repeated: list[str] = []
        self._real_root = os.path.realpath(root)
        self._followed: dict[str, tuple[str, str]] = {}
        """Target of each followed link -> its path, and the folder that was being listed."""

    def files(self, folder: str = ".") -> list[str]:
        """Return the files below `root/folder`, sorted folder by folder.

        Raises:
            DatasetError: if a link leads to a folder that was listed below another `folder`.
        """
        found: list[str] = []
        top = self.root / folder
        if top.is_symlink() and not self._may_follow(folder, folder):
            return found
        pending = ["" if folder == "." else f"{folder}/"]
        while pending:
            below = pending.pop()
            with os.scandir(self.root / below) as entries:
                for entry in entries:
                    self._sort(entry, below, folder, found, pending)
        return sorted(found, key=lambda file: file.split("/"))

    def top_files(self) -> list[str]:
        """Return the files directly in the root; hidden entries of any kind are noted."""
        found: list[str] = []
        with os.scandir(self.root) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    self._hide(entry, entry.name)
                elif not _is_folder(entry):
                    found.append(entry.name)
        return sorted(found)

    def _sort(
        self, entry: os.DirEntry[str], below: str, top: str, found: list[str], pending: list[str]
    ) -> None:
        path = below + entry.name
        if is_hidden(entry.name):
            self._hide(entry, path)
        elif not _is_folder(entry):
            found.append(path)
        elif not entry.is_symlink() or self._may_follow(path, top):
            pending.append(f"{path}/")

    def _hide(self, entry: os.DirEntry[str], path: str) -> None:
        if not entry.is_dir(follow_symlinks=False):
            self.hidden.append(path)
            return
        for folder, _, names in os.walk(self.root / path):
            inside = os.path.relpath(folder, self.root)
            self.hidden += [f"{inside}/{name}" for name in names]

    def _may_follow(self, path: str, top: str) -> bool:
        """Return whether a link to a folder leads to files that are not read otherwise."""
        target = os.path.realpath(self.root / path)
        if _is_within(target, self._real_root) or _is_within(self._real_root, target):
            self.repeated.append(path)
            return False
        for other, (first, its_top) in self._followed.items():
            if _is_within(target, other) or _is_within(other, target):
                if its_top != top:
                    raise DatasetError(
                        f"{self.root / path} and {self.root / first} lead to the same images in "
                        f"{target}, expected one class for each image. Remove one of the links"
                    )
                self.repeated.append(path)
                return False
        self._followed[target] = (path, top)
        return True


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or a link to one; a link to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
