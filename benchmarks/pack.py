"""Measure images per second of `kdcache pack`, and of the minimum work that it has to do.

Each arm uses one process per core:

- kdcache: `kdcache pack`, which decodes, checks, encodes and hashes images, and writes a beton;
- decode and encode: a process pool that decodes each image, encodes it as in the beton (JPEG of
  quality 90, or raw pixels up to 64 px), and writes nothing;
- decode: the same without encoding.

The checksum is the number of pixels. The time includes the start of the processes.

    python benchmarks/pack.py PHOTOS
    python benchmarks/pack.py cifar10/test.parquet --copies 1
    python benchmarks/pack.py digits --tiny
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from PIL import Image

from kdcache.cores import available_cores
from kdcache.data.beton import open_beton
from kdcache.data.images import JPEG_QUALITY
from kdcache.data.pack import pack
from kdcache.data.policy import MAX_SMALL_IMAGE_SIZE
from kdcache.data.source import Split
from kdcache.data.sources import open_source
from kdcache.options import PackOptions

if TYPE_CHECKING:  # measure loads torch, which the workers, who import this file, do not need
    from measure import Work

TARGET = 0.8
"""Target for the speed of kdcache, relative to decoding and encoding."""

IMAGES_PER_TASK = 32


def write_copies(source: str, folder: Path, copies: int, max_images: int | None) -> Path:
    """Write copies of a source's training images as an ImageFolder; return the folder."""
    split = open_source(source).splits["train"]
    for position in range(min(len(split.labels), max_images or len(split.labels))):
        content = split.read(position)
        target = folder / f"{split.labels[position]:05}"
        target.mkdir(parents=True, exist_ok=True)
        for copy in range(copies):
            (target / f"{position:06}-{copy}.jpg").write_bytes(content)
    return folder


def run_pool(split: Split, *, encode: bool) -> Work:
    """Decode every image in a process pool and, if `encode`, encode it as in a beton."""
    from measure import Work

    count = len(split.labels)
    context = multiprocessing.get_context("spawn")
    cores = available_cores()
    with ProcessPoolExecutor(cores, context, start_worker, (split, encode)) as pool:
        return Work(count, sum(pool.map(pixels_of, range(0, count, IMAGES_PER_TASK))))


def start_worker(split: Split, encode: bool) -> None:
    """Set the task of this worker process."""
    global task  # noqa: PLW0603  (a worker process has one task for its whole life)
    task = partial(decode, split, encode)


def pixels_of(first: int) -> int:
    """Decode a chunk of images; return its number of pixels."""
    return sum(map(task, range(first, first + IMAGES_PER_TASK)))


def decode(split: Split, encode: bool, position: int) -> int:
    """Decode an image and, if `encode`, encode it; return its number of pixels."""
    if position >= len(split.labels):
        return 0
    with Image.open(io.BytesIO(split.read(position))) as image:
        rgb = image.convert("RGB")
    if encode and max(rgb.size) > MAX_SMALL_IMAGE_SIZE:
        rgb.save(io.BytesIO(), "JPEG", quality=JPEG_QUALITY)
    elif encode:
        rgb.tobytes()
    return rgb.width * rgb.height


def arms(source: str, workspace: Path) -> dict[str, Callable[[], Work]]:
    """Return name -> function of every arm."""
    from measure import Work

    split = open_source(source).splits["train"]
    cores = available_cores()

    def ours() -> Work:
        options = {"val_fraction": 0, "num_workers": cores, "overwrite": True}
        pack(PackOptions(source, workspace=workspace, **options))
        beton = open_beton(workspace / "train.beton")
        return Work(len(beton), int(beton.sizes.prod(axis=1, dtype=int).sum()))

    return {
        "kdcache": ours,
        "decode and encode": partial(run_pool, split, encode=True),
        "decode": partial(run_pool, split, encode=False),
    }


def main() -> None:
    """Measure and print; with --record, write the result to a file."""
    from measure import environment, measure, print_table, record

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="as kdcache pack takes it; its training images are used")
    parser.add_argument(
        "--copies",
        type=int,
        default=10,
        help="copies of each image, so that small sources last long enough",
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--record", action="store_true", help="write to benchmarks/results/")
    parser.add_argument("--tiny", action="store_true", help="few images: does it still run?")
    options = parser.parse_args()
    max_images = 50 if options.tiny else None
    if options.tiny:
        options.copies, options.repeats = 1, 1
    with TemporaryDirectory() as folder:
        files = write_copies(options.source, Path(folder, "files"), options.copies, max_images)
        measured = measure(arms(str(files), Path(folder, "workspace")), repeats=options.repeats)
        write_mode = open_beton(Path(folder, "workspace", "train.beton")).manifest.write_mode
    where = environment()
    images = measured["kdcache"].num_images
    print(f"{where['cpu']}, {where['cores']} cores, {images:,} images stored as {write_mode}")
    print_table(measured)
    share = measured["kdcache"].images_per_second / measured["decode and encode"].images_per_second
    print(f"\nkdcache over decoding and encoding: {share:.2f} (aim: at least {TARGET})")
    if options.record:
        content = {
            "source": Path(options.source).name,
            "copies": options.copies,
            "write_mode": write_mode,
            "arms": {name: arm._asdict() for name, arm in measured.items()},
            "share": share,
        }
        print(record(f"pack-{write_mode}", content))


if __name__ == "__main__":
    main()
