"""Profile the reader: CPU milliseconds per image of each step.

Each step of a view runs alone, through the functions that the reader calls. The whole reader runs
with one thread; the difference to the sum of the steps is the overhead of numba, threads and
queues. The time of entropy decoding is that of decoding at 1/8, which includes 1/64 of the later
stages. The rest of the decoding is the inverse transform, chroma upsampling and colour conversion.

With --before PYTHON, an interpreter that has another version of kdcache, the reader of that version
takes part: it packs the same source, and the two read in turns.

    python benchmarks/reader_profile.py PHOTOS --image-size 224
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from decoding import DecodingJob, decoding_jobs
from measure import environment, record
from PIL import Image

from kdcache.data.beton import Beton, open_beton
from kdcache.data.pack import pack
from kdcache.data.policy import Policy
from kdcache.data.views import Views
from kdcache.options import PackOptions
from kdcache.reader.batches import PixelReader
from kdcache.reader.order import batch_bounds
from kdcache.reader.photometric_kernels import apply_change

CHANGE = tuple(np.int64(number) for number in (300, 200, 300, 10, 10, 20, 20))
"""A photometric change: brighter, less contrast, more saturation, and an erased box."""


def ms_of(step: Callable[[DecodingJob], object], jobs: list[DecodingJob]) -> float:
    """Return the CPU milliseconds per image of a step."""
    started = time.thread_time()
    for job in jobs:
        step(job)
    return 1000 * (time.thread_time() - started) / len(jobs)


def ms_of_reader(beton: Beton, views: Views, batch_size: int) -> Callable[[], float]:
    """Return a function that reads an epoch with one thread and returns CPU ms per image."""
    reader = PixelReader(beton, views, batch_size=batch_size, num_workers=1)
    batches = np.split(np.arange(len(beton)), batch_bounds(len(beton), batch_size)[1:-1])

    def once() -> float:
        started = time.process_time()
        for _ in reader.read(batches, 1):
            pass
        return 1000 * (time.process_time() - started) / len(beton)

    return once


def ms_of_another(python: str, options: argparse.Namespace, folder: Path) -> Callable[[], float]:
    """Return a function that reads with the kdcache of another interpreter, in a new process."""
    command = [python, "-c", OTHER, options.source, str(folder)]
    command += [str(options.image_size), str(options.batch_size)]
    command += [str(options.max_resolution or 0), str(options.classes or 0)]

    def once() -> float:
        finished = subprocess.run(command, check=True, capture_output=True, text=True)
        return float(finished.stdout.split()[-1])

    return once


OTHER = """
import sys, time
from pathlib import Path
import numpy as np
from kdcache.data.pack import pack
from kdcache.data.policy import Policy
from kdcache.data.views import Views
from kdcache.options import PackOptions
from kdcache.reader.batches import PixelReader
from kdcache.reader.order import batch_bounds

source, folder, size, batch = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
max_resolution, classes = (int(number) or None for number in sys.argv[5:])
given = {"max_resolution": max_resolution, "classes": classes}
given = {name: given[name] for name in given if name in PackOptions.__dataclass_fields__}
pack(PackOptions(source, workspace=folder, val_fraction=0, write_mode="jpg", **given))
views = Views(Policy.parse("rrc"), 0, size)
reader = PixelReader(folder / "train.beton", views, batch_size=batch, num_workers=1)
count = len(reader.beton)
batches = np.split(np.arange(count), batch_bounds(count, batch)[1:-1])
for repeat in range(2):  # the first warms up
    started = time.process_time()
    for _ in reader.read(batches, 1):
        pass
    milliseconds = 1000 * (time.process_time() - started) / count
print(milliseconds)
"""


def profile(beton: Beton, options: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Return step -> milliseconds per image of each repeat."""
    size = options.image_size
    views = Views(Policy.parse("rrc"), 0, size)
    policy = "rrc(brightness=0.4, contrast=0.4, saturation=0.4, erase=0.25)"
    changed = Views(Policy.parse(policy), 0, size)
    planes = views._replace(definition="planes")
    jobs = decoding_jobs(beton, views, view=1)
    decoded = [job.decode() for job in jobs]
    pictures = [Image.fromarray(pixels) for pixels in decoded]
    output = jobs[0].resize(decoded[0])
    by_job = {
        id(job): pair for job, pair in zip(jobs, zip(decoded, pictures, strict=True), strict=True)
    }
    steps: dict[str, Callable[[], float]] = {
        "decode whole images": lambda: ms_of(DecodingJob.decode_whole, jobs),
        "find and copy rows": lambda: ms_of(DecodingJob.find_rows, jobs),
        "decode rows at 1/8": lambda: ms_of(DecodingJob.decode_eighth, jobs),
        "decode rows": lambda: ms_of(DecodingJob.decode, jobs),
        "decode rows to planes": lambda: ms_of(DecodingJob.decode_planes, jobs),
        "resize": lambda: ms_of(lambda job: job.resize(by_job[id(job)][0]), jobs),
        "resize, OpenCV INTER_AREA": lambda: ms_of(
            lambda job: job.resize_with_opencv(by_job[id(job)][0]), jobs
        ),
        "resize, Pillow": lambda: ms_of(
            lambda job: job.resize_with_pillow(by_job[id(job)][1]), jobs
        ),
        "photometric changes": lambda: ms_of(lambda _: apply_change(output, CHANGE), jobs),
        "reader": ms_of_reader(beton, views, options.batch_size),
        "reader, with changes": ms_of_reader(beton, changed, options.batch_size),
        "reader, planes": ms_of_reader(beton, planes, options.batch_size),
    }
    if options.before:
        steps["reader, before"] = ms_of_another(options.before, options, folder / "before")
    measured: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(options.repeats + 1):
        for name, step in steps.items():
            milliseconds = step()
            if repeat > 0:  # the first warms up
                measured[name].append(milliseconds)
    return measured


def shares(steps: dict[str, float]) -> dict[str, float]:
    """Return the parts of the reader's time, in milliseconds per image."""
    parts = {
        "find and copy rows": steps["find and copy rows"],
        "entropy decoding of the rows": steps["decode rows at 1/8"],
        "transform and colour": steps["decode rows"] - steps["decode rows at 1/8"],
        "resize": steps["resize"],
    }
    return parts | {"numba, threads, queues": steps["reader"] - sum(parts.values())}


RATIOS = [
    ("resize", "resize, OpenCV INTER_AREA"),
    ("resize", "resize, Pillow"),
    ("reader", "decode rows"),
    ("reader", "decode whole images"),
    ("reader, planes", "reader"),
    ("reader", "reader, before"),
    ("reader, planes", "reader, before"),
]
"""Ratios that are printed, if both steps were measured."""


def main() -> None:
    """Measure and print; with --record, write the result to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="photos, as for kdcache pack")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--max-resolution", type=int, help="pack smaller images")
    parser.add_argument("--classes", type=int, help="as for kdcache pack")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--before", help="a Python interpreter with another version of kdcache")
    parser.add_argument("--name", default="", help="part of the name of the recorded file")
    parser.add_argument("--record", action="store_true", help="write to benchmarks/results/")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pack(
            PackOptions(
                options.source,
                workspace=folder,
                val_fraction=0,
                write_mode="jpg",
                max_resolution=options.max_resolution,
                classes=options.classes,
            )
        )
        beton = open_beton(folder / "train.beton")
        repeats = profile(beton, options, folder)
    steps = {step: statistics.median(values) for step, values in repeats.items()}
    parts = shares(steps)
    where = environment()
    print(f"\n{where['cpu']}, {options.repeats} repeats, {len(beton)} photos, one thread")
    print(f"CPU ms per image -> {options.image_size} px: median (min to max)\n")
    for step, values in repeats.items():
        print(f"{step:32}{steps[step]:>8.3f}  ({min(values):.3f} to {max(values):.3f})")
    print()
    for part, value in parts.items():
        print(f"{part:32}{value:>8.3f}{value / steps['reader']:>8.1%}")
    print()
    for one, other in RATIOS:
        if other in steps:
            print(f"{f'{one} / {other}':56}{steps[one] / steps[other]:>8.2f}")
    if options.record:
        recorded = vars(options) | {"source": Path(options.source).name, "before": None}
        content = {"options": recorded, "steps_ms": repeats, "parts_ms": parts}
        path = record(f"reader-profile{options.name}-{options.image_size}px", content)
        print(f"\nrecorded in {path}")


if __name__ == "__main__":
    main()
