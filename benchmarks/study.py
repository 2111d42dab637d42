"""What views, selection and a live teacher are worth: students of one data set, several seeds.

    python benchmarks/study.py SOURCE --folder F            # goes on where it was stopped
    python benchmarks/study.py SOURCE --folder F --record   # writes what there is so far

Every student has the same recipe and the same number of epochs *over its own samples*: one on 30 %
of the data has had 30 % of the steps, which is what pruning is for, and part of what it loses. All
cached arms read one store, of which `--views V` uses the first V. Each command is a process of its
own; the result of each student is a file in F, and is not made twice.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from measure import environment, record
from walk import Walk

from kdcache.cores import available_cores

VIEWS = 8


class Arm(NamedTuple):
    """Students that differ in their seed alone."""

    name: str
    method: str | None
    """Of `kdcache select`; None for all data."""
    keep: float
    arguments: tuple[str, ...]
    """Of `kdcache train`; TEACHER stands for the teacher's name."""
    headline: bool = False
    """Trained with every seed; the others once."""


CACHED = ("--views", "4")

ARMS = (
    Arm("all data, no KD", None, 1.0, ("--no-kd",), headline=True),
    Arm("all data, V = 1", None, 1.0, ("--views", "1"), headline=True),
    Arm("all data, V = 4", None, 1.0, CACHED, headline=True),
    Arm("all data, live teacher", None, 1.0, ("--live-teacher", "TEACHER"), headline=True),
    Arm("random 0.3, V = 4", "random", 0.3, CACHED, headline=True),
    Arm("medium 0.3, V = 4", "medium", 0.3, CACHED, headline=True),
    Arm("random 0.3, no KD", "random", 0.3, ("--no-kd",)),
    Arm("medium 0.3, no KD", "medium", 0.3, ("--no-kd",)),
    Arm("medium 0.3, V = 4, reshaped", "medium", 0.3, (*CACHED, "--reshape")),
    Arm("hard 0.3, V = 4", "hard", 0.3, CACHED),
    Arm("random 0.5, V = 4", "random", 0.5, CACHED),
    Arm("medium 0.5, V = 4", "medium", 0.5, CACHED),
    Arm("random 0.7, V = 4", "random", 0.7, CACHED),
    Arm("medium 0.7, V = 4", "medium", 0.7, CACHED),
    Arm("all data, clean view only", None, 1.0, ("--views", "0")),
    Arm("all data, V = 8", None, 1.0, ("--views", "8")),
)


def prepare(walk: Walk, options: argparse.Namespace, store: Path) -> dict[str, Any]:
    """Pack, train the teacher where there is none, and build the store; return its figures."""
    walk.run("pack", "pack", options.source)
    if not (options.folder / "workspace/teachers" / f"{options.teacher}.safetensors").exists():
        walk.run(
            "train-teacher",
            *("train-teacher", "--model", options.teacher, "--epochs", str(options.teacher_epochs)),
        )
    walk.run(
        "build-logits",
        *("build-logits", "--teacher", options.teacher, "--views", str(VIEWS)),
        *("--store", str(store)),
    )
    return walk.results["build-logits"]


def train_all(
    walk: Walk, options: argparse.Namespace, students: list[tuple[Arm, int]], store: Path
) -> None:
    """Select, and train the students whose results are not there, `--jobs` at a time."""
    missing = [
        (arm, seed) for arm, seed in students if not result_file(options.folder, arm, seed).exists()
    ]
    subsets: dict[tuple[str | None, float], str] = {(None, 1.0): "full"}
    for arm, _ in missing:
        if (arm.method, arm.keep) not in subsets:
            walk.run(
                "select",
                *("select", "--method", str(arm.method), "--keep", str(arm.keep)),
                *("--store", str(store)),
            )
            subsets[arm.method, arm.keep] = walk.results["select"]["path"]
    pool = ThreadPoolExecutor(options.jobs)
    started = [
        pool.submit(train, walk, options, arm, seed, subsets[arm.method, arm.keep], store)
        for arm, seed in missing
    ]
    try:
        for student in started:
            student.result()
    finally:  # where one fails, none is begun after it
        pool.shutdown(cancel_futures=True)


def train(
    walk: Walk, options: argparse.Namespace, arm: Arm, seed: int, subset: str, store: Path
) -> None:
    """Train one student and keep its result."""
    arguments = [options.teacher if word == "TEACHER" else word for word in arm.arguments]
    # A live teacher needs no store; one without KD takes the policy from it.
    where = () if "--live-teacher" in arguments else ("--store", str(store))
    result = result_file(options.folder, arm, seed)
    run_folder = options.folder / "runs" / result.stem
    walk.run(
        result.stem,
        *("train", "--subset", subset, *where, "--model", options.student, *arguments),
        *("--epochs", str(options.epochs), "--seed", str(seed), "--precision", options.precision),
        *("--out", str(run_folder), *(("--resume",) if run_folder.exists() else ())),
        *("--num-workers", str(options.threads)),
    )
    result.parent.mkdir(exist_ok=True)
    kept = {key: value for key, value in walk.results[result.stem].items() if key != "path"}
    result.write_text(json.dumps(kept | {"seed": seed, "environment": environment()}))


def result_file(folder: Path, arm: Arm, seed: int) -> Path:
    """Return where the result of one student is kept."""
    name = "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in arm.name)
    return folder / "students" / f"{name}-s{seed}.json"


def report(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Print every arm that has a student, and return the students."""
    print(f"\n{'top-1 in % of the test images':34}{'mean':>8}{'sd':>7}   seeds")
    found = {}
    for arm in ARMS:
        files = [result_file(options.folder, arm, seed) for seed in range(options.seeds)]
        students = [json.loads(file.read_text()) for file in files if file.exists()]
        if not students:
            continue
        found[arm.name] = students
        top1 = [student["top1"] for student in students]
        spread = f"{statistics.stdev(top1):7.2f}" if len(top1) > 1 else " " * 7
        each = ", ".join(f"{value:.2f}" for value in top1)
        print(f"{arm.name:34}{statistics.mean(top1):8.2f}{spread}   {each}")
    return found


def main() -> None:
    """Train what is missing, print, and record if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="as for kdcache pack")
    parser.add_argument("--folder", type=Path, required=True, help="kept between calls")
    parser.add_argument("--teacher", default="resnet20")
    parser.add_argument("--teacher-epochs", type=int, default=12)
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--precision", default="fp32", help="of the students")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="students that are trained at once")
    parser.add_argument("--record", action="store_true", help="train nothing, write the results")
    options = parser.parse_args()
    options.folder = options.folder.absolute()
    options.threads = max(1, available_cores() // options.jobs)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # of each command
    store = options.folder / f"v{VIEWS}.zarr"
    if options.record:
        found = report(options)
        source = Path(options.source).name
        told = vars(options) | {"source": source, "folder": True}
        teacher = json.loads((options.folder / "teacher.json").read_text())
        print(record(f"study-{source}", {"options": told, "teacher": teacher, "students": found}))
        return
    walk = Walk(options.folder / "workspace")
    built = prepare(walk, options, store)
    if built["val_quality"] is not None:  # measured by the call that built something
        about = {key: built[key] for key in ("train_quality", "val_quality", "bytes")}
        (options.folder / "teacher.json").write_text(json.dumps(about))
    headline = [(arm, seed) for seed in range(options.seeds) for arm in ARMS if arm.headline]
    once = [(arm, 0) for arm in ARMS if not arm.headline]
    train_all(walk, options, headline + once, store)
    report(options)


if __name__ == "__main__":
    main()
