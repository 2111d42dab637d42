"""numba's compiler, with its results kept on disk for exactly these sources.

numba keeps a compiled function under a stamp of its own file alone: after a change in a function
that it calls, in another file, it would run the old one. So the folder is named by a digest of all
sources of the package.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(**options: Any) -> Callable[[Function], Function]:
    """Return a decorator: `numba.njit` with these options, compiled once per machine."""

    def decorate(function: Function) -> Function:
        before = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = str(_cache_dir())
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # no folder to write to: compile in each process
            return numba.njit(**options)(function)
        finally:
            numba.config.CACHE_DIR = before

    return decorate


@cache
def _cache_dir() -> Path:
    content = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        content.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "kdcache" / content.hexdigest()[:16]
