"""Measure time and memory of a selection, for as many samples as ImageNet has, and up to 10^8.

These arms must select the same ids (the sum of the ids is checked):

- kdcache: `select_ids`, after its code is compiled;
- numpy, class by class: `np.where(labels == c)` and an argsort for each class;
- a loop: a Python loop over all samples for each class. It runs with fewer samples and the same
  number of classes. Its time grows with samples x classes, so the time at N is extrapolated.

numpy's argsort of N float32, which selects nothing, is the reference for all methods.

    python benchmarks/selection.py
    python benchmarks/selection.py --tiny
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measure import Measured, Work, environment, measure, record
from selection_memory import NUM_CLASSES, chosen, drawn

from kdcache.options import PruningOptions
from kdcache.selection.mdslr import mdslr_quotas
from kdcache.selection.methods import METHODS
from kdcache.selection.pruning import select_per_group

IMAGENET = 1_281_167
KEEP = 0.7


def parity(data: dict[str, np.ndarray]) -> np.ndarray:
    """Return the ids that `--parity mdslr` keeps; the loops below keep the same."""
    sizes = np.bincount(data["labels"], minlength=NUM_CLASSES).tolist()
    return select_per_group(
        data["scores"],
        data["labels"],
        PruningOptions(method="medium"),
        np.arange(NUM_CLASSES),
        mdslr_quotas(sizes, KEEP),
    )


def class_by_class(data: dict[str, np.ndarray]) -> np.ndarray:
    """Select as MDSLR does with numpy, with one pass over all labels for each class."""
    scores, labels = data["scores"], data["labels"]
    number = int(len(labels) / NUM_CLASSES * (100 * KEEP) / 100)
    kept = []
    for label in range(NUM_CLASSES):
        members = np.where(labels == label)[0]
        kept.append(window(members[np.argsort(scores[members], kind="stable")], number))
    return np.sort(np.concatenate(kept))


def sample_by_sample(data: dict[str, np.ndarray]) -> np.ndarray:
    """Select as MDSLR does with a loop over all samples for each class."""
    scores, labels = data["scores"], data["labels"]
    number = int(len(labels) / NUM_CLASSES * (100 * KEEP) / 100)
    kept = []
    for label in range(NUM_CLASSES):
        members = [sample for sample in range(len(labels)) if labels[sample] == label]
        order = np.array(sorted(members, key=lambda sample: (scores[sample], sample)), np.int64)
        kept.append(window(order, number))
    return np.sort(np.concatenate(kept))


def window(order: np.ndarray, number: int) -> np.ndarray:
    """Return the middle of one class, as MDSLR does."""
    if number >= len(order):
        return order
    middle = len(order) // 2
    return order[middle - (number - number // 2) : middle + number // 2]


def work_of(ids: np.ndarray, samples: int) -> Work:
    """Return the number of samples and the sum of the ids, to check for equal work."""
    return Work(samples, int(ids.sum()))


def compare_with_argsort(samples: int, repeats: int) -> dict[str, dict[str, Measured]]:
    """Measure every method, alternating with numpy's argsort of the same scores."""
    data = drawn(samples)

    def reference() -> Work:
        np.argsort(data["scores"])
        return Work(samples, 0)

    def arm(method: str, balance: str) -> Callable[[], Work]:
        def once() -> Work:
            chosen(data, method, balance, KEEP)
            return Work(samples, 0)  # argsort selects nothing, so there are no ids to compare

        return once

    arms = {
        f"{method}, {balance}": arm(method, balance)
        for method in METHODS
        for balance in ("proportional", "class", "none")
        if (method, balance) != ("class-adaptive", "none")
    }
    return {
        name: measure({"numpy argsort": reference, name: once}, repeats=repeats)
        for name, once in arms.items()
    }


def compare_with_loops(samples: int, fewer: int, repeats: int) -> dict[str, dict[str, Measured]]:
    """Measure kdcache and the two reference selections; the slow one gets fewer samples."""
    data, small = drawn(samples), drawn(fewer)
    return {
        "numpy, class by class": measure(
            {
                "kdcache": lambda: work_of(parity(data), samples),
                "numpy, class by class": lambda: work_of(class_by_class(data), samples),
            },
            repeats=repeats,
        ),
        f"a loop over {fewer:,} samples": measure(
            {
                "kdcache": lambda: work_of(parity(small), fewer),
                "a loop": lambda: work_of(sample_by_sample(small), fewer),
            },
            repeats=max(1, repeats // 5),
            warm_ups=0,
        ),
    }


def in_its_own_process(samples: int, method: str, balance: str) -> dict[str, Any]:
    """Run `selection_memory.py` and return its output."""
    script = Path(__file__).with_name("selection_memory.py")
    done = subprocess.run(
        [sys.executable, script, str(samples), method, balance, "--keep", str(KEEP)],
        capture_output=True,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def seconds(arm: Measured) -> float:
    """Return the median seconds of an arm."""
    return float(np.median(arm.seconds))


def main() -> None:
    """Measure and print; with --record, write the result to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=IMAGENET)
    parser.add_argument("--largest", type=int, default=100_000_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--record", action="store_true", help="write to benchmarks/results/")
    parser.add_argument("--tiny", action="store_true", help="few samples: does it still run?")
    arguments = parser.parse_args()
    fewer = 20_000
    if arguments.tiny:
        arguments.samples, arguments.largest, arguments.repeats, fewer = 20_000, 100_000, 1, 2_000
    where = environment()
    print(f"{where['cpu']}, {where['cores']} cores, {arguments.samples:,} samples of 1,000 classes")
    sorts = compare_with_argsort(arguments.samples, arguments.repeats)
    ratios = {}
    for name, arms in sorts.items():
        ratios[name] = seconds(arms[name]) / seconds(arms["numpy argsort"])
        print(
            f"{name:28}{1000 * seconds(arms[name]):>9.1f} ms{ratios[name]:>8.2f} of numpy's argsort"
        )
    loops = compare_with_loops(arguments.samples, fewer, arguments.repeats)
    for arms in loops.values():
        print()
        for name, result in arms.items():
            print(f"{name:28}{1000 * seconds(result):>9.1f} ms for {result.num_images:,} samples")
    numpy_arms, loop_arms = loops.values()
    loop_seconds = seconds(loop_arms["a loop"]) * arguments.samples / fewer
    speed_ups = {
        "numpy, class by class": seconds(numpy_arms["numpy, class by class"])
        / seconds(numpy_arms["kdcache"]),
        "a loop, extrapolated": loop_seconds / seconds(numpy_arms["kdcache"]),
    }
    print()
    for name, ratio in speed_ups.items():
        print(f"kdcache is faster than {name} by {ratio:,.0f}")
    sizes = [10**power for power in range(5, 9) if 10**power <= arguments.largest]
    series = [in_its_own_process(size, "medium", "proportional") for size in sizes]
    if not arguments.tiny:
        others = set(METHODS) - {"medium"}
        series += [
            in_its_own_process(arguments.largest, method, "proportional")
            for method in sorted(others)
        ]
        series.append(in_its_own_process(arguments.largest, "medium", "none"))
    print()
    for run in series:
        memory = run["bytes_per_sample"]["peak above the start without the ids returned"]
        print(
            f"{run['samples']:>13,} {run['method']}, {run['balance']:14}{run['seconds']:>9.3f} s"
            f"{1e9 * run['seconds'] / run['samples']:>8.1f} ns and {memory:>6.2f} B a sample"
        )
    if arguments.record:
        path = record(
            "selection",
            {
                "options": {key: str(value) for key, value in vars(arguments).items()},
                "beside_argsort": {
                    name: {arm: result._asdict() for arm, result in arms.items()}
                    for name, arms in sorts.items()
                },
                "seconds_over_argsort": ratios,
                "beside_loops": {
                    name: {arm: result._asdict() for arm, result in arms.items()}
                    for name, arms in loops.items()
                },
                "loop_seconds_extrapolated": loop_seconds,
                "speed_ups": speed_ups,
                "one_process_each": series,
            },
        )
        print(f"\nrecorded in {path}")


if __name__ == "__main__":
    main()
