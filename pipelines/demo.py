"""`make demo`: the whole walk on scikit-learn's digits, each command a process of its own.

Prints a table of what came out: accuracies, seconds of each stage, bytes of the store, and the
teacher forwards during student training, as the commands measured them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def run(*arguments: str, workspace: Path) -> tuple[dict[str, Any], float]:
    """Run one kdcache command; return its result and the seconds of the whole process."""
    print(f"\n$ kdcache {' '.join(arguments)}", flush=True)
    started = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-m", "kdcache", *arguments, "--json"],
        env=os.environ | {"KDCACHE_WORKSPACE": str(workspace)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if process.returncode != 0:
        sys.exit(process.returncode)
    return json.loads(process.stdout), time.perf_counter() - started


def main() -> None:
    """Walk from images to students in a temporary workspace."""
    with tempfile.TemporaryDirectory(prefix="kdcache-demo-") as folder:
        report(Path(folder) / "workspace")


def report(workspace: Path) -> None:
    """Run every stage and print the table."""
    seconds: dict[str, float] = {}
    pack, seconds["pack"] = run("pack", "digits", workspace=workspace)
    teacher, seconds["train-teacher"] = run(
        "train-teacher", "--model", "resnet50", workspace=workspace
    )
    store, seconds["build-logits"] = run(
        "build-logits", "--teacher", "resnet50", workspace=workspace
    )
    students: dict[tuple[str, bool], dict[str, Any]] = {}
    for method in ("medium", "random"):
        _, seconds[f"select {method}"] = run(
            "select", "--method", method, "--keep", "0.7", workspace=workspace
        )
        for kd in (True, False):
            command = ("train",) if kd else ("train", "--no-kd")
            students[method, kd], seconds[f"{' '.join(command)} ({method})"] = run(
                *command, workspace=workspace
            )
    forwards = sum(student["teacher_forwards"] for student in students.values())
    train_images, test_images = pack["train"]["samples"], pack["val"]["samples"]
    print(f"\ndigits: {train_images:,} training images, {test_images} test images")
    print(f"\n{'':28}{'with KD':>10}{'without':>10}   top-1 in % of the test images")
    print(f"{'teacher, resnet50':28}{'':>10}{teacher['top1']:>10.2f}")
    for method in ("medium", "random"):
        with_kd, without = (students[method, kd]["top1"] for kd in (True, False))
        kept = students[method, True]["samples"]
        print(f"{f'resnet8, {method}, {kept:,} kept':28}{with_kd:>10.2f}{without:>10.2f}")
    print("\nseconds of each stage, start of the process included")
    for stage, duration in seconds.items():
        print(f"  {stage:28}{duration:>8.1f}")
    print(f"  {'together':28}{sum(seconds.values()):>8.1f}")
    print(f"\nstore: {store['bytes']:,} bytes, {store['views']} views and the clean one")
    print(f"teacher forwards to build it: {store['teacher_forwards']:,}")
    print(f"teacher forwards during student training: {forwards} (measured)")
    print(
        "\nThe digits are so easy, and so few, that no arm is expected to win: the demo shows that "
        "the walk works, not that KD helps."
    )


if __name__ == "__main__":
    main()
