"""numba's compiler, with the compiled functions kept on disk.

Before numba loads a compiled function, it checks the age of one file only: the one that defines the
function. It would miss a change in another file, for example of a called function or a constant. So
each file of the package has a cache folder of its own, and the folder's name is a digest of that
file and of all files of the package that it imports, directly or not.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core.caching import FunctionCache

from kdcache.progress import logger

Function = TypeVar("Function", bound=Callable[..., Any])

_PACKAGE = Path(__file__).parent

MAX_CACHE_FOLDERS = 256
"""One version of the package needs about 15 folders and 3 MB."""

MIN_UNUSED_SECONDS = 7 * 24 * 3600.0
"""A folder that was used more recently stays: a running process may still write to it."""


def compiled(**options: Any) -> Callable[[Function], Function]:
    """Return a decorator that applies `numba.njit` and keeps the compiled code on disk.

    Without a writable cache folder, each process compiles for itself.

    Args:
        options: those of `numba.njit`, except `cache`.
    """

    def decorate(function: Function) -> Function:
        folder = _cache_folder(Path(inspect.getfile(function)))
        if folder is None:
            return numba.njit(**options)(function)
        dispatcher = numba.njit(**options)(function)
        before = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = str(folder)
        try:
            dispatcher._cache = _Cache(function)  # noqa: SLF001  (what `njit(cache=True)` sets)
        finally:
            numba.config.CACHE_DIR = before
        return dispatcher

    return decorate


class _Cache(FunctionCache):
    """numba's cache of one function. If the cache fails, the function is compiled and still runs.

    numba ends the process if the disk is full, or if a power failure left a damaged file.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # noqa: BLE001  (a damaged pickle can raise anything)
            with suppress(OSError):
                self.flush()  # its index then lists nothing, and the function is compiled anew
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _warn_once(str(_cache_home()), str(error.strerror))


def evict(cache_home: Path, *, max_folders: int, min_unused_seconds: float) -> None:
    """Remove the least recently used folders of the cache.

    Args:
        cache_home: the folder that holds one folder per source file and version of it.
        max_folders: how many may stay.
        min_unused_seconds: folders used within this time stay, however many there are.
    """
    last_used = {}
    for folder in cache_home.iterdir():
        with suppress(FileNotFoundError):  # another process evicts at the same time
            last_used[folder] = folder.stat().st_mtime
    newest_first = sorted(last_used, key=lambda folder: last_used[folder], reverse=True)
    latest_to_evict = time.time() - min_unused_seconds
    for folder in newest_first[max_folders:]:
        if last_used[folder] < latest_to_evict:
            shutil.rmtree(folder, ignore_errors=True)


@cache
def _cache_folder(path: Path) -> Path | None:
    """Return the cache folder of one file of the package; make it, and mark it as used.

    Returns:
        None if the folder cannot be written to. numba itself would then write beside the source
        file, where it compares that file's age alone.
    """
    content = hashlib.sha256(str(_PACKAGE).encode())
    for source in sorted(_with_imported(path, set())):
        content.update(f"{source.relative_to(_PACKAGE)}\n".encode() + source.read_bytes())
    home = _cache_home()
    folder = home / content.hexdigest()[:16]
    try:
        if not folder.exists():
            folder.mkdir(parents=True, exist_ok=True)
            evict(home, max_folders=MAX_CACHE_FOLDERS, min_unused_seconds=MIN_UNUSED_SECONDS)
        os.utime(folder)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        _warn_once(str(home), str(error.strerror))
        return None
    return folder


def _cache_home() -> Path:
    """Return the folder of all cache folders; it may be impossible to create."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if given.is_absolute():  # the XDG specification ignores a relative path
        return given / "kdcache"
    try:
        return Path.home() / ".cache" / "kdcache"
    except RuntimeError:  # a user without a home folder, as in some containers
        return Path(os.devnull) / "kdcache"


@cache
def _warn_once(cache_home: str, reason: str) -> None:
    logger.warning(
        "compiled functions cannot be kept in %s: %s. Each process compiles them again, for many "
        "seconds; set XDG_CACHE_HOME to a folder that you may write to and that has space",
        cache_home,
        reason,
    )


def _with_imported(path: Path, known: set[Path]) -> set[Path]:
    """Add a file of the package, and every file of the package that it imports, to `known`."""
    if path not in known:
        known.add(path)
        for module in _imported_modules(path):
            imported = _PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py")
            if imported.is_file():
                _with_imported(imported, known)
    return known


@cache
def _imported_modules(path: Path) -> list[str]:
    """Return the names that may be modules of the package.

    For `from a.b import c` these are `a.b` and `a.b.c`. Other packages are left out: beside an
    installed kdcache their files lie in the same folder.
    """
    modules = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in modules if name.split(".")[0] == _PACKAGE.name]
