"""The whole walk, each command a process of its own, and a table of what came out.

Images -> teacher -> store -> a medium and a random subset -> students with and without KD. The
figures are the commands' own: accuracies, seconds of each stage, bytes of the store, and the
teacher forwards during student training as `kdcache train` measured them. `make demo` is the walk
on digits.

    python benchmarks/walk.py digits
    python benchmarks/walk.py SOURCE --teacher resnet20 --teacher-epochs 6 --keep 0.5 --record
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

METHODS = ("medium", "random")


class Walk:
    """Runs kdcache commands in one workspace and keeps what they answer.

    Attributes:
        seconds: stage -> seconds of the whole process.
        results: stage -> the command's JSON object.
    """

    def __init__(self, workspace: Path) -> None:
        self._workspace = workspace
        self.seconds: dict[str, float] = {}
        self.results: dict[str, dict[str, Any]] = {}

    def run(self, stage: str, *arguments: str) -> None:
        """Run one command; ends this program with its status when it fails."""
        print(f"\n$ kdcache {' '.join(arguments)}", flush=True)
        started = time.perf_counter()
        process = subprocess.run(
            [sys.executable, "-m", "kdcache", *arguments, "--json"],
            env=os.environ | {"KDCACHE_WORKSPACE": str(self._workspace)},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if process.returncode != 0:
            sys.exit(process.returncode)
        self.seconds[stage] = round(time.perf_counter() - started, 2)
        self.results[stage] = json.loads(process.stdout)


def take(walk: Walk, options: argparse.Namespace) -> None:
    """Run every stage."""
    walk.run("pack", "pack", options.source)
    epochs = ("--epochs", options.teacher_epochs) if options.teacher_epochs else ()
    walk.run("train-teacher", "train-teacher", "--model", options.teacher, *epochs)
    views = ("--views", options.views) if options.views else ()
    walk.run("build-logits", "build-logits", "--teacher", options.teacher, *views)
    student = ("--model", options.student) if options.student else ()
    epochs = ("--epochs", options.epochs) if options.epochs else ()
    for method in METHODS:
        walk.run(f"select {method}", "select", "--method", method, "--keep", options.keep)
        walk.run(f"train {method}", "train", *student, *epochs)
        walk.run(f"train {method}, no KD", "train", "--no-kd", *student, *epochs)


def report(walk: Walk, options: argparse.Namespace) -> None:
    """Print the table."""
    pack, store = walk.results["pack"], walk.results["build-logits"]
    teacher = walk.results["train-teacher"]
    print(
        f"\n{options.source}: {pack['train']['samples']:,} training images, "
        f"{pack['val']['samples']:,} test images"
    )
    print(f"\n{'top-1 in % of the test images':40}{'with KD':>10}{'without':>10}")
    print(f"{f'teacher, {options.teacher}':40}{'':>10}{teacher['top1']:>10.2f}")
    forwards = 0
    for method in METHODS:
        with_kd = walk.results[f"train {method}"]
        without = walk.results[f"train {method}, no KD"]
        forwards += with_kd["teacher_forwards"] + without["teacher_forwards"]
        name = f"student, {method}, {with_kd['samples']:,} kept"
        print(f"{name:40}{with_kd['top1']:>10.2f}{without['top1']:>10.2f}")
    print("\nseconds of each stage, the start of its process included")
    for stage, duration in walk.seconds.items():
        print(f"  {stage:30}{duration:>8.1f}")
    print(f"  {'together':30}{sum(walk.seconds.values()):>8.1f}")
    print(f"\nstore: {store['bytes']:,} bytes for {store['views']} views and the clean one")
    print(f"teacher forwards to build it: {store['teacher_forwards']:,}")
    print(f"teacher forwards during student training: {forwards} (measured)")
    if options.source == "digits":
        print(
            "\nThe digits are so easy, and so few, that no arm is expected to win: this shows that "
            "the walk works, not that KD helps."
        )


def main() -> None:
    """Take the walk in a temporary workspace, or in a given one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="as for kdcache pack")
    parser.add_argument("--teacher", default="resnet50")
    parser.add_argument("--teacher-epochs", help="kdcache's default when left out")
    parser.add_argument("--views", help="kdcache's default when left out")
    parser.add_argument("--keep", default="0.7")
    parser.add_argument("--student", help="kdcache's default when left out")
    parser.add_argument("--epochs", help="of the students; kdcache's default when left out")
    parser.add_argument("--record", action="store_true", help="write to benchmarks/results/")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kdcache-walk-") as folder:
        walk = Walk(Path(folder) / "workspace")
        take(walk, options)
    report(walk, options)
    if options.record:
        from measure import record

        for result in walk.results.values():
            result.pop("path", None)
            for split in ("train", "val"):
                (result.get(split) or {}).pop("path", None)
        name = f"walk-{Path(options.source).name}"
        told = vars(options) | {"source": Path(options.source).name}
        path = record(name, {"options": told, "seconds": walk.seconds, "results": walk.results})
        print(f"\nrecorded in {path}")


if __name__ == "__main__":
    main()
