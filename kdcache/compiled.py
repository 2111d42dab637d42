"""numba's compiler, with its results kept on disk for exactly these sources.

numba keeps a compiled function under a stamp of its own file alone: after a change in a function
that it calls, or of a constant, in another file, it would run the old one. So the folder is named
by a digest of the function's file and of all files of the package that it imports, directly or not.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., Any])

_ROOT = Path(__file__).parent


def compiled(**options: Any) -> Callable[[Function], Function]:
    """Return a decorator: `numba.njit` with these options, compiled once per machine."""

    def decorate(function: Function) -> Function:
        before = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = str(_cache_dir(Path(inspect.getfile(function))))
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # no folder to write to: compile in each process
            return numba.njit(**options)(function)
        finally:
            numba.config.CACHE_DIR = before

    return decorate


@cache
def _cache_dir(path: Path) -> Path:
    content = hashlib.sha256()
    for source in sorted(_with_imported(path, set())):
        content.update(f"{source.relative_to(_ROOT)}\n".encode() + source.read_bytes())
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "kdcache" / content.hexdigest()[:16]


def _with_imported(path: Path, known: set[Path]) -> set[Path]:
    """Return a file of the package and all that it imports of it, added to those that are known."""
    if path not in known:
        known.add(path)
        for module in _modules_imported(path):
            imported = _ROOT.parent.joinpath(*module.split(".")).with_suffix(".py")
            if imported.is_file():
                _with_imported(imported, known)
    return known


@cache
def _modules_imported(path: Path) -> list[str]:
    """Return every name that may be a module: `a.b` and `a.b.c` for `from a.b import c`."""
    modules = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return modules
