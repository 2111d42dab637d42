"""Check that numba compiles a function, runs it in threads, and caches it on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from kdcache.checkup.finding import Finding, error, note, ok
from kdcache.compiled import compiled


@compiled(parallel=True, nogil=True)
def _cached(values: npt.NDArray[np.int64]) -> int:
    """Return the sum of squares; the compiled function is cached on disk."""
    total = 0
    for i in numba.prange(len(values)):
        total += values[i] * values[i]
    return total


@numba.njit(parallel=True, nogil=True)
def _uncached(values: npt.NDArray[np.int64]) -> int:
    """Return the sum of squares; it is compiled in each process, which tests the compiler."""
    total = 0
    for i in numba.prange(len(values)):
        total += values[i] * values[i]
    return total


def check_compiler(_workspace: Path) -> Iterator[Finding]:
    """Compile one function anew, run one from the cache, and compare their results."""
    if numba.config.DISABLE_JIT:
        remedy = "run: unset NUMBA_DISABLE_JIT"
        yield error("compiler", "NUMBA_DISABLE_JIT keeps numba from compiling", remedy)
        return
    values = np.arange(1000)
    expected = int((values * values).sum())
    results = {int(_uncached(values)), int(_cached(values))}
    if results != {expected}:
        remedy = "pip install --force-reinstall --no-cache-dir numba llvmlite"
        yield error("compiler", f"compiled code returned {results}, expected {expected}", remedy)
        return
    threads = f"{numba.get_num_threads()} threads ({numba.threading_layer()})"
    yield ok("compiler", f"numba {numba.__version__} compiled a function and ran it in {threads}")
    dispatcher: Any = _cached
    folder = dispatcher.stats.cache_path
    if folder is None:
        found = "numba has no folder for its cache, so each process compiles for several seconds"
        yield note("compiled functions", found, "set XDG_CACHE_HOME to a writable folder")
    else:
        yield ok("compiled functions", f"are cached in {folder}")
