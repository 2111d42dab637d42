"""Measure one selection of N random scores in this process: seconds and peak memory.

    python benchmarks/selection_memory.py 100000000 medium proportional

The script prints one JSON object. `benchmarks/selection.py` runs it for several N.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from kdcache.options import PruningOptions
from kdcache.selection.pruning import select_ids

NUM_CLASSES = 1000
OPTIONS: dict[str, dict[str, float]] = {"window": {"start": 0.1}, "stratified": {"cut": 0.1}}


def drawn(count: int, classes: int = NUM_CLASSES) -> dict[str, np.ndarray]:
    """Return random scores (distributed like cross-entropies), labels, and correctness."""
    rng = np.random.default_rng(0)
    scores = rng.standard_exponential(count, dtype=np.float32)
    np.power(scores, 4, out=scores)
    return {
        "scores": scores,
        "labels": rng.integers(0, classes, count),
        "correct": rng.random(count, dtype=np.float32) < 0.8,
    }


def chosen(data: dict[str, np.ndarray], method: str, balance: str, keep: float) -> np.ndarray:
    """Return the ids that kdcache keeps."""
    options = PruningOptions(
        method=method,  # type: ignore[arg-type]
        keep=keep,
        balance=balance,  # type: ignore[arg-type]
        **OPTIONS.get(method, {}),  # type: ignore[arg-type]
    )
    return select_ids(
        data["scores"],
        data["labels"],
        options,
        num_classes=NUM_CLASSES,
        correct=data["correct"] if method == "class-adaptive" else None,
    )


def peak_bytes() -> int:
    """Return the peak memory of this process, from VmHWM (getrusage may report the parent's)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def run(count: int, method: str, balance: str, keep: float) -> dict[str, Any]:
    """Measure one selection, after a small one that loads the compiled code."""
    chosen(drawn(5_000), method, balance, keep)
    before_inputs = psutil.Process().memory_info().rss
    data = drawn(count)
    if method != "class-adaptive":
        del data["correct"]
        data["correct"] = np.zeros(0, dtype=bool)
    before = peak_bytes()
    input_bytes = data["scores"].nbytes + data["labels"].nbytes + data["correct"].nbytes
    started = time.perf_counter()
    ids = chosen(data, method, balance, keep)
    seconds = time.perf_counter() - started
    peak = peak_bytes()
    return {
        "samples": count,
        "method": method,
        "balance": balance,
        "seconds": round(seconds, 4),
        "kept": len(ids),
        "checksum": int(ids.sum()),
        "bytes_per_sample": {
            "inputs": round(input_bytes / count, 2),
            "peak while they were drawn": round((before - before_inputs) / count, 2),
            "peak above the start": round((peak - before_inputs) / count, 2),
            "peak above the start without the ids returned": round(
                (peak - before_inputs - ids.nbytes) / count, 2
            ),
        },
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("samples", type=int)
    parser.add_argument("method")
    parser.add_argument("balance")
    parser.add_argument("--keep", type=float, default=0.7)
    arguments = parser.parse_args()
    print(json.dumps(run(arguments.samples, arguments.method, arguments.balance, arguments.keep)))
