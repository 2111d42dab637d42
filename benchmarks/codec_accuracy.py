"""Compare students that are trained from a `dense` store and from one with another codec.

Each command runs in its own process. Both stores have the same samples, views and teacher. The
students differ in their seed and store only.

    python benchmarks/codec_accuracy.py SOURCE --codec auto --seeds 3 --record
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from end_to_end import Pipeline
from measure import record

STORES = ("dense", "compact")


def run_steps(pipeline: Pipeline, options: argparse.Namespace, folder: Path) -> None:
    """Run every step."""
    pipeline.run("pack", "pack", options.source)
    teacher = ("--teacher", options.teacher)
    pipeline.run(
        "train-teacher",
        *("train-teacher", "--model", options.teacher, "--epochs", str(options.teacher_epochs)),
    )
    pipeline.run("clean view", "build-logits", *teacher, "--views", "0")
    pipeline.run("select", "select", "--method", "random", "--keep", str(options.keep))
    subset = Path(pipeline.results["select"]["path"]).stem
    for name, codec in zip(STORES, ("dense", options.codec), strict=True):
        pipeline.run(
            name,
            *("build-logits", *teacher, "--subset", subset, "--views", str(options.views)),
            *("--codec", codec, "--store", str(folder / f"{name}.zarr")),
        )
    for seed in range(options.seeds):
        for name in STORES:
            pipeline.run(
                f"train {name} {seed}",
                *("train", "--store", str(folder / f"{name}.zarr"), "--seed", str(seed)),
                *("--model", options.student, "--epochs", str(options.epochs)),
                *("--temperature", str(options.temperature)),
            )


def report(pipeline: Pipeline, options: argparse.Namespace) -> dict[str, list[float]]:
    """Print and return the top-1 accuracies of each store's students, in percent."""
    accuracies = {
        name: [pipeline.results[f"train {name} {seed}"]["top1"] for seed in range(options.seeds)]
        for name in STORES
    }
    print(f"\nteacher, {options.teacher}: {pipeline.results['train-teacher']['top1']:.2f} %")
    for name, found in accuracies.items():
        spread = statistics.stdev(found) if len(found) > 1 else float("nan")
        print(
            f"{name:10} {pipeline.results[name]['bytes']:>14,} bytes   "
            f"mean {statistics.mean(found):.2f} %, standard deviation {spread:.2f} "
            f"({', '.join(f'{value:.2f}' for value in found)})"
        )
    pairs = zip(*accuracies.values(), strict=True)
    gains = [compact - dense for dense, compact in pairs]
    print(f"compact minus dense, seed by seed: {', '.join(f'{gain:+.2f}' for gain in gains)}")
    return accuracies


def main() -> None:
    """Measure and print; with --record, write the result to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="as for kdcache pack")
    parser.add_argument("--codec", default="auto", help="codec to compare with dense")
    parser.add_argument("--teacher", default="resnet20")
    parser.add_argument("--teacher-epochs", type=int, default=10)
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--keep", type=float, default=0.3)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--temperature", type=float, default=4.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, help="not deleted, so that a second run reuses the teacher"
    )
    parser.add_argument("--record", action="store_true", help="write to benchmarks/results/")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kdcache-codecs-") as name:
        folder = (options.folder or Path(name)).absolute()
        pipeline = Pipeline(folder / "workspace")
        run_steps(pipeline, options, folder)
    accuracies = report(pipeline, options)
    if options.record:
        for result in pipeline.results.values():
            for key in ("path", "train", "val"):
                result.pop(key, None)
        source = Path(options.source).name
        content = {
            "options": vars(options) | {"source": source, "folder": options.folder is not None},
            "top1": accuracies,
            "seconds": pipeline.seconds,
            "results": pipeline.results,
        }
        print(record(f"codec_accuracy-{source}", content))


if __name__ == "__main__":
    main()
