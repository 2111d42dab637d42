"""numba compiles a function, runs it in threads, and keeps it on disk for the next process."""

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
def _kept(values: npt.NDArray[np.int64]) -> int:
    """Return the sum of squares; the compiled function is kept on disk."""
    total = 0
    for i in numba.prange(len(values)):
        total += values[i] * values[i]
    return total


@numba.njit(parallel=True, nogil=True)
def _compiled_anew(values: npt.NDArray[np.int64]) -> int:
    """Return the sum of squares; compiled each time, so that the compiler is tried."""
    total = 0
    for i in numba.prange(len(values)):
        total += values[i] * values[i]
    return total


def check_compiler(_workspace: Path) -> Iterator[Finding]:
    """Compile and run both."""
    if numba.config.DISABLE_JIT:
        remedy = "run: unset NUMBA_DISABLE_JIT"
        yield error("compiler", "NUMBA_DISABLE_JIT keeps numba from compiling", remedy)
        return
    values = np.arange(1000)
    expected = int((values * values).sum())
    results = {int(_compiled_anew(values)), int(_kept(values))}
    if results != {expected}:
        remedy = "pip install --force-reinstall --no-cache-dir numba llvmlite"
        yield error("compiler", f"compiled code returned {results}, expected {expected}", remedy)
        return
    threads = f"{numba.get_num_threads()} threads ({numba.threading_layer()})"
    yield ok("compiler", f"numba {numba.__version__} compiled a function and ran it in {threads}")
    dispatcher: Any = _kept
    folder = dispatcher.stats.cache_path
    if folder is None:
        found = "compiled functions cannot be kept, so each process compiles them again for seconds"
        yield note("compiled functions", found, "name a folder you may write to: XDG_CACHE_HOME")
    else:
        yield ok("compiled functions", f"are kept in {folder}")
