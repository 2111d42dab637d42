"""Measure images per second of the loader alone: kdcache, unmodified FFCV, and alternatives.

Every arm yields the same images once, as uint8 batches of one size, after RandomResizedCrop (up to
64 px: zero padding, crop and flip). Arms of other packages (`pip install kdcache[bench]`) run if
the package is installed; otherwise they are recorded as missing. `libjpeg-turbo alone` decodes
whole images with the same number of threads and does nothing else; it is the limit of every arm
that decodes whole images. `libjpeg-turbo, rows alone` decodes only the rows that kdcache decodes;
it is the limit of kdcache.

    python benchmarks/loader.py PHOTOS --image-size 224
    python benchmarks/loader.py --tiny
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from decoding import DecodingJob, decoding_jobs
from measure import Work, environment, measure, print_table, record
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

from kdcache.data.beton import open_beton
from kdcache.data.pack import pack
from kdcache.data.policy import Policy
from kdcache.data.sources import open_source
from kdcache.data.views import Views
from kdcache.options import PackOptions
from kdcache.reader.batches import PixelReader
from kdcache.reader.order import batch_bounds

SMALL = 64


def transform(image_size: int) -> v2.Transform:
    """Return the usual augmentation for a tensor or a PIL image."""
    if image_size <= SMALL:
        return v2.Compose([v2.RandomCrop(image_size, padding=4), v2.RandomHorizontalFlip()])
    return v2.Compose([v2.RandomResizedCrop(image_size), v2.RandomHorizontalFlip()])


class Files(Dataset[tuple[torch.Tensor, int]]):
    """JPEG files, decoded by Pillow or libjpeg-turbo."""

    def __init__(self, paths: list[Path], *, decoder: str, image_size: int) -> None:
        self._paths = paths
        self._decoder = decoder
        self._image_size = image_size

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        content = self._paths[position].read_bytes()
        if self._decoder == "pil":
            return _to_tensor(Image.open(io.BytesIO(content)), size=self._image_size), position
        return _decode_and_cut(content, size=self._image_size), position


class Arrays(Dataset[tuple[torch.Tensor, int]]):
    """Decoded images of one size, in memory."""

    def __init__(self, images: np.ndarray, *, image_size: int) -> None:
        self._images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        self._transform = transform(image_size)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        return self._transform(self._images[position]), position


def consume(batches: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> Work:
    """Consume batches; return the number of images and the sum of their ids."""
    images = checksum = 0
    for pixels, ids in batches:
        images += len(pixels)
        checksum += int(ids.sum())
    return Work(images, checksum)


def views_of(options: argparse.Namespace) -> Views:
    """Return the views that kdcache's arms read."""
    policy = "pad-crop(4, flip)" if options.image_size <= SMALL else "rrc"
    return Views(Policy.parse(policy), 0, options.image_size)


def ours(beton: Path, options: argparse.Namespace) -> Callable[[], Work]:
    """Return the arm of kdcache's reader; each epoch reads another view."""
    opened = open_beton(beton)
    reader = PixelReader(
        opened, views_of(options), batch_size=options.batch_size, num_workers=options.num_workers
    )
    epoch = 0

    def once() -> Work:
        nonlocal epoch
        epoch += 1
        order = np.random.default_rng(epoch).permutation(len(opened))
        batches = np.split(order, batch_bounds(len(order), options.batch_size)[1:-1])
        return consume((batch.images, batch.sample_ids) for batch in reader.read(batches, epoch))

    return once


def stock_ffcv(beton: Path, options: argparse.Namespace) -> Callable[[], Work]:
    """Return the arm of FFCV's loader and operations on the same file."""
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.decoders import (
        RandomResizedCropRGBImageDecoder,
        SimpleRGBImageDecoder,
    )
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, RandomTranslate, ToTensor

    size = (options.image_size, options.image_size)
    if options.image_size <= SMALL:
        image = [SimpleRGBImageDecoder(), RandomTranslate(4, (0, 0, 0)), RandomHorizontalFlip()]
    else:
        image = [RandomResizedCropRGBImageDecoder(size), RandomHorizontalFlip()]
    loader = Loader(
        str(beton),
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        os_cache=True,
        order=OrderOption.RANDOM,
        drop_last=False,
        seed=0,
        pipelines={
            "image": [*image, ToTensor()],
            "label": None,
            "sample_id": [IntDecoder(), ToTensor()],
        },
    )
    return lambda: consume(iter(loader))


def torch_loader(data: Dataset[Any], options: argparse.Namespace) -> Callable[[], Work]:
    """Return the arm of a torch DataLoader with persistent workers."""
    loader = DataLoader(
        data,
        batch_size=options.batch_size,
        shuffle=True,
        num_workers=options.num_workers,
        persistent_workers=True,
        # Not fork, because this process has threads of other arms.
        multiprocessing_context="forkserver",
    )
    return lambda: consume(iter(loader))


def decode_alone(paths: list[Path], options: argparse.Namespace) -> Callable[[], Work]:
    """Return the arm that decodes every file with libjpeg-turbo and does nothing else."""
    contents = [torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8) for path in paths]
    pool = ThreadPoolExecutor(options.num_workers)

    def once() -> Work:
        for _ in pool.map(partial(decode_jpeg, mode=ImageReadMode.RGB), contents):
            pass
        return Work(len(contents), sum(range(len(contents))))

    return once


def decode_rows(beton: Path, options: argparse.Namespace) -> Callable[[], Work]:
    """Return the arm that decodes the rows of each box at its scale and does nothing else."""
    jobs = decoding_jobs(open_beton(beton), views_of(options), view=1)
    pool = ThreadPoolExecutor(options.num_workers)

    def once() -> Work:
        for _ in pool.map(DecodingJob.decode, jobs):
            pass
        return Work(len(jobs), sum(range(len(jobs))))

    return once


def web_dataset(paths: list[Path], options: argparse.Namespace, folder: Path) -> Any:
    """Return the arm of WebDataset on tar shards."""
    import webdataset as wds

    pattern = str(folder / "shard-%03d.tar")
    with wds.ShardWriter(pattern, maxcount=500, verbose=0) as writer:
        for position, path in enumerate(paths):
            sample = {"__key__": f"{position:08}", "jpg": path.read_bytes(), "cls": position}
            writer.write(sample)
    shards = sorted(str(path) for path in folder.glob("shard-*.tar"))
    data = (
        wds.WebDataset(shards, shardshuffle=False, workersplitter=wds.split_by_worker)
        .shuffle(500)
        .decode("pil")
        .to_tuple("jpg", "cls")
        .map_tuple(partial(_to_tensor, size=options.image_size), int)
        .batched(options.batch_size, partial=True)
    )
    loader = wds.WebLoader(
        data,
        batch_size=None,
        num_workers=min(options.num_workers, len(shards)),
        persistent_workers=True,
        multiprocessing_context="forkserver",
    )
    return lambda: consume((images, torch.as_tensor(ids)) for images, ids in loader)


def lit_data(paths: list[Path], options: argparse.Namespace, folder: Path) -> Callable[[], Work]:
    """Return the arm of LitData on its own chunks of JPEG files."""
    import litdata
    from litdata.streaming.writer import BinaryWriter

    optimized = str(folder / "litdata")
    # Not `litdata.optimize`, which starts processes for this loop.
    writer = BinaryWriter(optimized, chunk_bytes="64MB")
    for position, path in enumerate(paths):
        writer[position] = {"jpg": path.read_bytes(), "id": position}
    writer.done()
    writer.merge()
    data = litdata.StreamingDataset(
        optimized,
        shuffle=True,
        drop_last=False,
        transform=partial(_lit_decode, size=options.image_size),
    )
    loader = litdata.StreamingDataLoader(
        data,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        persistent_workers=True,
        drop_last=False,
        multiprocessing_context="forkserver",
    )
    return lambda: consume(iter(loader))


def _lit_decode(item: dict[str, Any], *, size: int) -> tuple[torch.Tensor, int]:
    return _decode_and_cut(item["jpg"], size=size), item["id"]


def spdl(paths: list[Path], options: argparse.Namespace) -> Callable[[], Work]:
    """Return the arm of SPDL's thread pipeline, with libjpeg-turbo (its decoder needs FFmpeg)."""
    from spdl.pipeline import PipelineBuilder

    def read(position: int) -> tuple[torch.Tensor, int]:
        return _decode_and_cut(paths[position].read_bytes(), size=options.image_size), position

    def collate(samples: list[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        images, ids = zip(*samples, strict=True)
        return torch.stack(images), torch.tensor(ids)

    pool = ThreadPoolExecutor(options.num_workers, initializer=torch.set_num_threads, initargs=(1,))
    epoch = 0

    def once() -> Work:
        nonlocal epoch
        epoch += 1
        order = np.random.default_rng(epoch).permutation(len(paths)).tolist()
        pipeline = (
            PipelineBuilder()
            .add_source(order)
            .pipe(read, executor=pool, concurrency=options.num_workers)
            .aggregate(options.batch_size)
            .pipe(collate)
            .add_sink(3)
            .build(num_threads=1)
        )
        with pipeline.auto_stop():
            return consume(iter(pipeline))

    return once


def _decode_and_cut(content: bytes, *, size: int) -> torch.Tensor:
    encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    image: torch.Tensor = transform(size)(decode_jpeg(encoded, mode=ImageReadMode.RGB))
    return image


def _to_tensor(image: Image.Image, *, size: int) -> torch.Tensor:
    return torch.from_numpy(np.array(transform(size)(image.convert("RGB")))).permute(2, 0, 1)


def write_files(source: str, folder: Path, count: int) -> list[Path]:
    """Write a source's images as JPEG files, in turn until there are `count`."""
    split = open_source(source).splits["train"]
    paths = []
    for position in range(count):
        content = split.read(position % len(split.labels))
        path = folder / "photos" / f"{position:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if content[:2] != b"\xff\xd8":
            file = io.BytesIO()
            Image.open(io.BytesIO(content)).convert("RGB").save(file, "JPEG", quality=90)
            content = file.getvalue()
        path.write_bytes(content)
        paths.append(path)
    return paths


def make_arms(
    options: argparse.Namespace, folder: Path
) -> tuple[dict[str, Callable[[], Work]], list[str]]:
    """Write every arm's files; return the arms, and the names of those whose package is missing."""
    # So that worker processes start with what this file imports, and not by importing it.
    multiprocessing.set_forkserver_preload(["torchvision.transforms.v2", "kdcache.reader.batches"])
    paths = write_files(options.source, folder / "files", options.images)
    pack(PackOptions(str(folder / "files"), workspace=folder, val_fraction=0, num_workers=1))
    beton = folder / "train.beton"
    size = options.image_size
    arms = {
        "kdcache": ours(beton, options),
        "stock FFCV": stock_ffcv(beton, options),
        "DataLoader, PIL": torch_loader(Files(paths, decoder="pil", image_size=size), options),
        "DataLoader, torchvision.io": torch_loader(
            Files(paths, decoder="torchvision", image_size=size), options
        ),
        "libjpeg-turbo alone": decode_alone(paths, options),
    }
    if open_beton(beton).manifest.write_mode == "jpg":
        arms["libjpeg-turbo, rows alone"] = decode_rows(beton, options)
    if size <= SMALL:
        images = np.stack([np.array(Image.open(path).convert("RGB")) for path in paths])
        arms["DataLoader, arrays"] = torch_loader(Arrays(images, image_size=size), options)
    others: dict[str, tuple[str, Callable[[], Callable[[], Work]]]] = {
        "WebDataset": ("webdataset", lambda: web_dataset(paths, options, folder)),
        "LitData": ("litdata", lambda: lit_data(paths, options, folder)),
        "SPDL": ("spdl.pipeline", lambda: spdl(paths, options)),
    }
    missing = [name for name, (package, _) in others.items() if not is_installed(package)]
    arms |= {name: make() for name, (_, make) in others.items() if name not in missing}
    return arms, missing


def is_installed(package: str) -> bool:
    """Return whether a package can be imported."""
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # the parent package is missing
        return False


def main() -> None:
    """Measure and print; with --record, write the result to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", default="digits", help="as for kdcache pack")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--record", action="store_true", help="write to benchmarks/results/")
    parser.add_argument("--tiny", action="store_true", help="a few images: does it still run?")
    options = parser.parse_args()
    if options.tiny:
        options.images, options.repeats, options.batch_size, options.image_size = 64, 1, 16, 8
        options.num_workers = 1
    with tempfile.TemporaryDirectory() as folder:
        arms, missing = make_arms(options, Path(folder))
        measured = measure(arms, repeats=options.repeats)
    where = environment()
    print(f"\n{where['cpu']}, {where['cores']} cores, {options.repeats} repeats")
    print(f"{options.images:,} images -> {options.image_size} px\n")
    print_table(measured)
    for name in missing:
        print(f"{name:28}{'not installed: no arm':>36}")
    own = measured["kdcache"]
    ratios = {
        name: {
            "wall": own.images_per_second / arm.images_per_second,
            "cpu": arm.cpu_ms_per_image / own.cpu_ms_per_image,
        }
        for name, arm in measured.items()
    }
    print("\nkdcache / arm, by the clock and by processor time")
    for name, ratio in ratios.items():
        print(f"{name:28}{ratio['wall']:>8.2f}{ratio['cpu']:>8.2f}")
    if options.record:
        recorded = vars(options) | {"source": Path(options.source).name}
        figures = {name: arm._asdict() for name, arm in measured.items()}
        path = record(
            f"loader-{options.image_size}px",
            {"options": recorded, "arms": figures, "missing": missing, "ratios": ratios},
        )
        print(f"\nrecorded in {path}")


if __name__ == "__main__":
    main()
