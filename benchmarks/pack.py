"""Images per second of a pack, beside the least that it could do.

Arms, each with a process for every core:

- kdcache: `kdcache pack` as a user runs it: decodes, checks, encodes, digests, writes a beton;
- decode and encode: a bare process pool that decodes and encodes each image as the beton would hold
  it (JPEG of quality 90, or raw pixels up to 64 px) and drops the result; writes nothing;
- decode: the same without encoding.

The number of pixels is the checksum. Starting the processes is part of every arm.

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

if TYPE_CHECKING:  # it loads torch, which no worker needs: each of them imports this file
    from measure import Work

TARGET = 0.8
"""Of kdcache over decoding and encoding."""

IMAGES_PER_TASK = 32


def write_copies(source: str, folder: Path, copies: int, most: int | None) -> Path:
    """Write the training images of a source to an ImageFolder, several times over."""
    split = open_source(source).splits["train"]
    for position in range(min(len(split.labels), most or len(split.labels))):
        content = split.read(position)
        target = folder / f"{split.labels[position]:05}"
        target.mkdir(parents=True, exist_ok=True)
        for copy in range(copies):
            (target / f"{position:06}-{copy}.jpg").write_bytes(content)
    return folder


def bare(split: Split, *, encode: bool) -> Work:
    """Decode every image in a process pool, and encode it as a beton holds it."""
    from measure import Work

    count = len(split.labels)
    context = multiprocessing.get_context("spawn")
    cores = available_cores()
    with ProcessPoolExecutor(cores, context, start_worker, (split, encode)) as pool:
        return Work(count, sum(pool.map(pixels_of, range(0, count, IMAGES_PER_TASK))))


def start_worker(split: Split, encode: bool) -> None:
    """Keep what this process works on."""
    global todo  # noqa: PLW0603  (a worker process has one task for its whole life)
    todo = partial(decode, split, encode)


def pixels_of(first: int) -> int:
    """Decode some images; return their number of pixels."""
    return sum(map(todo, range(first, first + IMAGES_PER_TASK)))


def decode(split: Split, encode: bool, position: int) -> int:
    """Decode an image and, where that is asked for, encode it."""
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
    """Return what is timed."""
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
        "decode and encode": partial(bare, split, encode=True),
        "decode": partial(bare, split, encode=False),
    }


def main() -> None:
    """Measure and print; with --record, keep the result."""
    from measure import environment, measure, print_table, record

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="as kdcache pack takes it; its training images are used")
    parser.add_argument("--copies", type=int, default=10, help="of each image; 200 are few")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--record", action="store_true", help="write to benchmarks/results/")
    parser.add_argument("--tiny", action="store_true", help="few images: does it still run?")
    options = parser.parse_args()
    most = 50 if options.tiny else None
    if options.tiny:
        options.copies, options.repeats = 1, 1
    with TemporaryDirectory() as folder:
        files = write_copies(options.source, Path(folder, "files"), options.copies, most)
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
