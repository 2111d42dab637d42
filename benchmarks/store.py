"""Measure writing, reading and staging of a store of ImageNet's size, and of plain files.

    python benchmarks/store.py                   # 1,281,167 rows of 1,000 classes, dense
    python benchmarks/store.py --codec 'topk(k=10)'

"images" are rows here. All arms may use the page cache. Both writing arms flush to the disk. The
staging arms read a random 70 % of a view in random order into memory, as training does for the rows
of an epoch.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from measure import Measured, Work, environment, measure, print_table, record

from kdcache.data.policy import CENTER_CROP_RATIO
from kdcache.loader.staging import RowPrefetcher
from kdcache.store.codecs.choice import choose_codec
from kdcache.store.codecs.codec import Codec
from kdcache.store.codecs.request import CodecRequest
from kdcache.store.format.codec_file import Decision, write_decision
from kdcache.store.format.layout import PER_SAMPLE_ARRAYS, rows_name
from kdcache.store.logit_store import LogitStore
from kdcache.store.manifest import FORMAT_VERSION, StoreManifest, digest_sample_ids
from kdcache.store.writer import StoreWriter

SHARD_ROWS = 4096
SHARE = 0.7


def drawn_logits(rows: int, classes: int) -> npt.NDArray[np.float32]:
    """Return random logits of one shard, (rows, classes) float32; their values do not matter."""
    rng = np.random.default_rng(0)
    return 3 * rng.standard_normal((rows, classes), dtype=np.float32)


def empty_store(path: Path, *, rows: int, classes: int, codec: str) -> StoreWriter:
    """Create a store with a clean view and one augmented view, both without rows."""
    ids = np.arange(rows, dtype=np.int64)
    about = StoreManifest(
        format_version=FORMAT_VERSION,
        data_fingerprint="drawn",
        samples=rows,
        classes=classes,
        class_names=[str(label) for label in range(classes)],
        rows=rows,
        rows_digest=digest_sample_ids(ids),
        teacher="drawn",
        teacher_arch="none",
        teacher_digest="none",
        teachers=["drawn"],
        ensemble=None,
        policy="rrc",
        view_seed=0,
        image_size=224,
        teacher_size=224,
        center_crop_ratio=CENTER_CROP_RATIO,
        clean_filter="bilinear",
        pixel_definition="pillow",
        decode="full",
        mean=[[0.5, 0.5, 0.5]],
        std=[[0.2, 0.2, 0.2]],
        codec=codec,
        precision="fp32",
        shard_rows=SHARD_ROWS,
        batch_size=256,
        device="none",
        versions={},
    )
    writer = StoreWriter.create(path, about, labels=ids % classes, sample_ids=ids)
    if CodecRequest.parse(codec).name not in {"dense", "float32"}:
        choice = choose_codec(codec, drawn_logits(SHARD_ROWS, classes), ids[:SHARD_ROWS])
        write_decision(writer.group, Decision(choice.codec, choice.table))
    writer.add_views(1)
    return writer


def shards(rows: int) -> Iterator[tuple[int, int]]:
    """Yield (index, number of rows) of every shard."""
    for shard, start in enumerate(range(0, rows, SHARD_ROWS)):
        yield shard, min(SHARD_ROWS, rows - start)


def run(
    arguments: argparse.Namespace, folder: Path
) -> tuple[dict[str, dict[str, Measured]], Codec]:
    """Measure writing, reading and staging; return the arms and the codec."""
    rows, classes = arguments.rows, arguments.classes
    writer = empty_store(folder / "s.zarr", rows=rows, classes=classes, codec=arguments.codec)
    codec = writer.codec(1)
    ids = np.arange(SHARD_ROWS)
    encoded = codec.encode(drawn_logits(SHARD_ROWS, classes), view_keys=ids, view=1)
    work = Work(rows, rows)

    def write_store() -> Work:
        for shard, count in shards(rows):
            writer.write_shard(1, shard, encoded[:count], {})
        return work

    def write_files() -> Work:
        for shard, count in shards(rows):
            with (folder / f"plain-{shard}").open("wb") as file:
                file.write(encoded[:count].tobytes())
                file.flush()
                os.fsync(file.fileno())
        return work

    writing = measure(
        {"write: kdcache": write_store, "write: plain files": write_files},
        repeats=arguments.repeats,
    )
    finish(writer, rows)
    store = LogitStore.open(folder / "s.zarr")
    everything = np.arange(rows)

    def read_store() -> Work:
        store.rows(everything, 1)
        return work

    def read_files() -> Work:
        out = np.empty((rows, codec.row_width), dtype=codec.dtype)
        for shard, count in shards(rows):
            start = shard * SHARD_ROWS
            content = np.fromfile(folder / f"plain-{shard}", dtype=codec.dtype)
            out[start : start + count] = content.reshape(count, -1)
        return work

    reading = measure(
        {"read: kdcache": read_store, "read: plain files": read_files}, repeats=arguments.repeats
    )
    rng = np.random.default_rng(1)
    kept = rng.permutation(rng.choice(rows, int(SHARE * rows), replace=False))
    staged = Work(len(kept), len(kept))

    def stage_store() -> Work:
        prefetcher = RowPrefetcher(store)
        prefetcher.take(0, 1, kept)
        prefetcher.close()
        return staged

    def stage_files() -> Work:
        """Gather rows from one memory-mapped file, without checksums and shards."""
        np.take(plain, kept, axis=0)
        return staged

    plain = np.memmap(folder / "plain", dtype=codec.dtype, mode="w+", shape=(rows, codec.row_width))
    store.rows(everything, 1, out=plain)
    staging = measure(
        {"stage 70 %: kdcache": stage_store, "stage 70 %: mapped file": stage_files},
        repeats=arguments.repeats,
    )
    return {"write": writing, "read": reading, "stage": staging}, codec


def finish(writer: StoreWriter, rows: int) -> None:
    """Write zeros as the clean view's scores and rows, so that the store can be opened."""
    clean = writer.codec(0)
    for shard, count in shards(rows):
        per_sample = {name: np.zeros(count, dtype) for name, dtype in PER_SAMPLE_ARRAYS.items()}
        writer.write_shard(0, shard, np.zeros((count, clean.row_width), clean.dtype), per_sample)
    for view in (0, 1):
        writer.finish_view(view)
    assert rows_name(1) in writer.group


def main() -> None:
    """Measure and print; with --record, write the result to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_281_167)
    parser.add_argument("--classes", type=int, default=1_000)
    parser.add_argument("--codec", default="dense")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; the system's when left out")
    parser.add_argument("--record", action="store_true", help="write to benchmarks/results/")
    parser.add_argument("--tiny", action="store_true", help="a few rows: does it still run?")
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.rows, arguments.classes, arguments.repeats = 10_000, 10, 1
    with tempfile.TemporaryDirectory(prefix="kdcache-store-", dir=arguments.folder) as folder:
        measured, codec = run(arguments, Path(folder))
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    sizes = {"encoded": codec.row_bytes, "decoded": 4 * arguments.classes}
    for part, arms in measured.items():
        print_table(arms)
        names = list(arms)
        ours, plain = (arms[name].images_per_second for name in names)
        rates = ", ".join(f"{ours * size / 1e9:.2f} GB/s {name}" for name, size in sizes.items())
        print(f"{part}: {ours / plain:.2f} of {names[1].partition(': ')[2]}; {rates}\n")
    print(f"peak memory {peak_bytes / 2**30:.2f} GiB")
    if arguments.record:
        content = {
            "arguments": {key: str(value) for key, value in vars(arguments).items()},
            "codec": str(codec),
            "row_bytes": codec.row_bytes,
            "peak_bytes": peak_bytes,
            "arms": {
                name: arm._asdict() for arms in measured.values() for name, arm in arms.items()
            },
        }
        name = f"store-{CodecRequest.parse(arguments.codec).name}"
        print(record(name, content))
    else:
        print(environment())


if __name__ == "__main__":
    main()
