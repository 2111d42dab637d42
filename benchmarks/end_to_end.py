"""Run all commands from images to students, each in its own process, and print a table of results.

The steps are: pack, train a teacher, build its logits, select, and train students with and without
the teacher. Students are trained on the 70 % of the images with medium difficulty, and on a random
5 %, with three seeds each. All figures come from the commands; `kdcache train` counts the teacher's
forward passes. `make demo` runs this on the digits.

    python benchmarks/end_to_end.py digits
    python benchmarks/end_to_end.py SOURCE --teacher-epochs 6 --record
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple


class Arm(NamedTuple):
    """A selection of the images on which students are trained."""

    method: str
    keep: float

    @property
    def subset(self) -> str:
        """The name that `kdcache select` gives the subset."""
        return f"{self.method}-{self.keep}"


ARMS = (Arm("medium", 0.7), Arm("random", 0.05))


class Pipeline:
    """Runs kdcache commands in one workspace and keeps their results.

    Attributes:
        seconds: step -> wall time of the process in seconds.
        results: step -> the command's JSON object.
    """

    def __init__(self, workspace: Path) -> None:
        self._workspace = workspace
        self.seconds: dict[str, float] = {}
        self.results: dict[str, dict[str, Any]] = {}

    def run(self, step: str, *arguments: str, threads: int | None = None) -> None:
        """Run one command.

        Args:
            step: key of its result.
            arguments: the words after `kdcache`.
            threads: number of torch's threads; None: torch's default.

        Raises:
            SystemExit: with the command's status, if it fails.
        """
        print(f"$ kdcache {' '.join(arguments)}", flush=True)
        limit = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        started = time.perf_counter()
        process = subprocess.run(
            [sys.executable, "-m", "kdcache", *arguments, "--json", "--quiet"],
            env=os.environ | limit | {"KDCACHE_WORKSPACE": str(self._workspace)},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if process.returncode != 0:
            sys.exit(process.returncode)
        self.seconds[step] = round(time.perf_counter() - started, 2)
        self.results[step] = json.loads(process.stdout)


def run_steps(pipeline: Pipeline, options: argparse.Namespace) -> None:
    """Run every step."""
    pipeline.run("pack", "pack", options.source)
    epochs = ("--epochs", options.teacher_epochs) if options.teacher_epochs else ()
    pipeline.run("train-teacher", "train-teacher", "--model", options.teacher, *epochs)
    views = ("--views", options.views) if options.views else ()
    pipeline.run("build-logits", "build-logits", "--teacher", options.teacher, *views)
    for arm in ARMS:
        pipeline.run(
            *(f"select {arm.subset}", "select", "--method", arm.method, "--keep", str(arm.keep))
        )
    train_students(pipeline, options)


def train_students(pipeline: Pipeline, options: argparse.Namespace) -> None:
    """Train the students of both arms, with and without KD, one per core at a time.

    The students are small, so one thread for each of two students is faster than two threads for
    one student.
    """
    model = ("--model", options.student) if options.student else ()
    epochs = ("--epochs", options.epochs) if options.epochs else ()
    common = ("--seeds", options.seeds, "--eval-every", options.eval_every, *model, *epochs)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        running = [
            pool.submit(
                pipeline.run, name, "train", "--subset", arm.subset, *common, *no_kd, threads=1
            )
            for arm in ARMS
            for name, no_kd in ((arm.subset, ()), (f"{arm.subset} without", ("--no-kd",)))
        ]
        for student in running:
            student.result()


def report(pipeline: Pipeline, options: argparse.Namespace) -> None:
    """Print the table of accuracies, the seconds of each step, and a summary."""
    pack, store = pipeline.results["pack"], pipeline.results["build-logits"]
    print(
        f"\n{options.source}: {pack['train']['samples']:,} training images, "
        f"{pack['val']['samples']:,} test images, {options.seeds} seeds"
    )
    print(f"\n{'top-1 on the test images, %':34}{'with the teacher':>20}{'labels alone':>20}")
    teacher = f"teacher, {options.teacher}, all images"
    print(f"{teacher:34}{'':>20}{pipeline.results['train-teacher']['top1']:>20.2f}")
    means, forwards = {}, 0
    for arm in ARMS:
        students = [pipeline.results[arm.subset], pipeline.results[f"{arm.subset} without"]]
        runs = [run for student in students for run in runs_of(student)]
        forwards += sum(run["teacher_forwards"] for run in runs)
        name = f"students, {runs[0]['samples']:,} images, {arm.method}"
        cells = "".join(f"{text(runs_of(student)):>20}" for student in students)
        print(f"{name:34}{cells}")
        means[arm] = [
            statistics.mean(run["top1"] for run in runs_of(student)) for student in students
        ]
    print("\nseconds of each command, including the start of its process")
    for step, duration in pipeline.seconds.items():
        print(f"  {step:30}{duration:>8.1f}")
    print(f"\nstore: {store['bytes']:,} bytes for {store['views']} views and the clean one")
    print(f"teacher forwards to build it: {store['teacher_forwards']:,}")
    print(f"teacher forwards during student training: {forwards} (counted)")
    few = ARMS[-1]
    with_teacher, alone = means[few]
    print(
        f"\nOn {few.keep:.0%} of the images, a student with the teacher's stored answers reaches "
        f"{with_teacher:.1f} %, and {alone:.1f} % with labels alone."
    )


def runs_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the results of the students of a `kdcache train` command."""
    runs: list[dict[str, Any]] = result.get("runs", [result])
    return runs


def text(runs: Sequence[dict[str, Any]]) -> str:
    """Return the mean accuracy as text, with the standard deviation of several students."""
    top1 = [run["top1"] for run in runs]
    deviation = f" +- {statistics.stdev(top1):.2f}" if len(top1) > 1 else ""
    return f"{statistics.mean(top1):.2f}{deviation}"


def main() -> None:
    """Run all steps in a temporary workspace."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="as for kdcache pack")
    parser.add_argument("--teacher", default="resnet20")
    parser.add_argument("--teacher-epochs", help="kdcache's default when left out")
    parser.add_argument("--views", help="kdcache's default when left out")
    parser.add_argument("--student", help="kdcache's default when left out")
    parser.add_argument("--epochs", help="epochs of the students; kdcache's default when left out")
    parser.add_argument("--eval-every", default="20", help="epochs between two evaluations")
    parser.add_argument("--seeds", default="3", help="number of students of each kind")
    parser.add_argument("--record", action="store_true", help="write to benchmarks/results/")
    options = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="kdcache-pipeline-") as folder:
        pipeline = Pipeline(Path(folder) / "workspace")
        run_steps(pipeline, options)
    report(pipeline, options)
    print(f"{time.perf_counter() - started:.0f} s in all.")
    if options.record:
        from measure import record

        source = Path(options.source).name
        content = {
            "options": vars(options) | {"source": source},
            "seconds": pipeline.seconds,
            "results": without_paths(pipeline.results),
        }
        print(f"recorded in {record(f'end-to-end-{source}', content)}")


def without_paths(value: Any) -> Any:
    """Return a result without the paths of this machine."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items() if key != "path"}
    return [without_paths(item) for item in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
