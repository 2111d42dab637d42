"""Profile the reader: CPU milliseconds per image of each step.

Each step of a view runs alone, through the functions that the reader calls. The whole reader runs
with one thread; the difference to the sum of the steps is the overhead of FFCV, numba, threads and
queues. The time of entropy decoding is that of decoding at 1/8, which includes 1/64 of the later
stages. The rest of the decoding is the inverse transform, chroma upsampling and colour conversion.

    python benchmarks/reader_profile.py PHOTOS --image-size 224
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from decoding import DecodingJob, decoding_jobs
from measure import environment, record

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


def profile(beton: Beton, options: argparse.Namespace) -> dict[str, float]:
    """Return step -> median milliseconds per image over the repeats."""
    size = options.image_size
    views = Views(Policy.parse("rrc"), 0, size)
    changed = Views(
        Policy.parse("rrc(brightness=0.4, contrast=0.4, saturation=0.4, erase=0.25)"), 0, size
    )
    jobs = decoding_jobs(beton, views, view=1)
    outputs = [job.resize(job.decode(), size) for job in jobs]
    steps: dict[str, Callable[[], float]] = {
        "decode whole images": lambda: ms_of(DecodingJob.decode_whole, jobs),
        "find and copy rows": lambda: ms_of(DecodingJob.find_rows, jobs),
        "decode rows at 1/8": lambda: ms_of(DecodingJob.decode_eighth, jobs),
        "decode rows": lambda: ms_of(DecodingJob.decode, jobs),
        "decode rows and resize": lambda: ms_of(lambda job: job.resize(job.decode(), size), jobs),
        "mirror": lambda: ms_of(lambda job: job.mirror(outputs[0]), jobs),
        "photometric changes": lambda: ms_of(lambda _: apply_change(outputs[0], CHANGE), jobs),
        "reader": ms_of_reader(beton, views, options.batch_size),
        "reader, with changes": ms_of_reader(beton, changed, options.batch_size),
    }
    measured: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(options.repeats + 1):
        for name, step in steps.items():
            milliseconds = step()
            if repeat > 0:  # the first warms up
                measured[name].append(milliseconds)
    return {name: statistics.median(values) for name, values in measured.items()}


def shares(steps: dict[str, float]) -> dict[str, float]:
    """Return the parts of the reader's time, in milliseconds per image."""
    parts = {
        "find and copy rows": steps["find and copy rows"],
        "entropy decoding of the rows": steps["decode rows at 1/8"],
        "transform and colour": steps["decode rows"] - steps["decode rows at 1/8"],
        "resize": steps["decode rows and resize"] - steps["decode rows"],
        "mirror": steps["mirror"],
    }
    return parts | {"FFCV, numba, queues": steps["reader"] - sum(parts.values())}


def main() -> None:
    """Measure and print; with --record, write the result to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="photos, as for kdcache pack")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--record", action="store_true", help="write to benchmarks/results/")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        pack(PackOptions(options.source, workspace=workspace, val_fraction=0, write_mode="jpg"))
        beton = open_beton(workspace / "train.beton")
        steps = profile(beton, options)
    parts = shares(steps)
    where = environment()
    print(f"\n{where['cpu']}, {options.repeats} repeats, {len(beton)} photos, one thread")
    print(f"CPU ms per image -> {options.image_size} px\n")
    for name, value in parts.items():
        print(f"{name:32}{value:>8.3f}{value / steps['reader']:>8.1%}")
    print(f"{'reader':32}{steps['reader']:>8.3f}\n")
    for name in ("decode rows", "decode whole images"):
        print(f"{f'reader / {name} alone':32}{steps['reader'] / steps[name]:>8.2f}")
    print(f"{'reader with photometric changes':32}{steps['reader, with changes']:>8.3f}")
    if options.record:
        recorded = vars(options) | {"source": Path(options.source).name}
        content = {"options": recorded, "steps_ms": steps, "parts_ms": parts}
        path = record(f"reader-profile-{options.image_size}px", content)
        print(f"\nrecorded in {path}")


if __name__ == "__main__":
    main()
