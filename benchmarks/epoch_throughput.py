"""Measure the time of a training epoch: labels only, cached KD and live teacher, and their limits.

The first three arms run kdcache's training loop on the same samples in the same order. They differ
in the source of the teacher's logits. The other arms are their limits: the student and the teacher
on one batch that is already on the device, and the loader alone. The models' weights and the
store's logits are random, which does not change the time. No accuracy is measured.

    python benchmarks/epoch_throughput.py --workspace W --student resnet20 --teacher resnet56
    python benchmarks/epoch_throughput.py --tiny
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import (
    Measured,
    Work,
    environment,
    measure,
    print_table,
    record,
    start_as_the_command_line_does,
)

from kdcache.compute.device import resolve_device
from kdcache.compute.normalize import Normalise
from kdcache.data.beton import Beton, open_beton
from kdcache.data.pack import pack
from kdcache.data.policy import CENTER_CROP_RATIO
from kdcache.loader.batch import Batch
from kdcache.loader.distill import DistillLoader
from kdcache.loader.live import LiveLoader
from kdcache.models.registry import make_model
from kdcache.options import PackOptions
from kdcache.store.format.layout import PER_SAMPLE_ARRAYS
from kdcache.store.logit_store import LogitStore
from kdcache.store.manifest import FORMAT_VERSION, StoreManifest, digest_sample_ids
from kdcache.store.writer import StoreWriter
from kdcache.teacher.forward import TeacherForward
from kdcache.training.trainer import Trainer, TrainSettings

NUM_VIEWS = 2

PASS_VIEWS = 9
"""Teacher forwards per image with the default number of views: 8, and the clean view."""


class RecordingLoader:
    """A loader that records which samples it has delivered."""

    def __init__(self, loader: DistillLoader) -> None:
        self._loader = loader
        self.work = Work(0, 0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the loader's batches."""
        images = checksum = 0
        for batch in self._loader.epoch(epoch):
            images += len(batch.sample_ids)
            checksum += int(batch.sample_ids.sum())
            yield batch
        self.work = Work(images, checksum)


class Synthetic(RecordingLoader):
    """A loader that repeats one batch on the device, to measure a model without loading."""

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the first batch once for every batch of the epoch."""
        kept: Batch | None = None
        images = checksum = 0
        for batch in self._loader.epoch(epoch) if not hasattr(self, "_plan") else ():
            kept = kept or batch._replace(images=batch.images.clone())
            images += len(batch.sample_ids)
            checksum += int(batch.sample_ids.sum())
        if kept is not None:
            self._plan = (kept, Work(images, checksum))
        batch, self.work = self._plan
        for _ in range(len(self)):
            yield batch


def drawn_store(path: Path, beton: Beton, *, classes: int, image_size: int) -> LogitStore:
    """Write a dense store with random logits of C classes for the samples of a beton."""
    data = beton.manifest
    rng = np.random.default_rng(0)
    manifest = StoreManifest(
        format_version=FORMAT_VERSION,
        data_fingerprint=data.fingerprint,
        samples=data.samples,
        classes=classes,
        class_names=[str(label) for label in range(classes)],
        rows=data.samples,
        rows_digest=digest_sample_ids(beton.sample_ids),
        teacher="drawn",
        teacher_arch="none",
        teacher_digest="none",
        teachers=["drawn"],
        ensemble=None,
        policy=data.policy,
        view_seed=0,
        image_size=image_size,
        teacher_size=image_size,
        center_crop_ratio=CENTER_CROP_RATIO,
        clean_filter="bilinear",
        pixel_definition="pillow",
        decode="full",
        mean=[data.mean],
        std=[data.std],
        codec="dense",
        precision="fp32",
        shard_rows=4096,
        batch_size=128,
        device="none",
        versions={"kdcache": version("kdcache")},
    )
    writer = StoreWriter.create(path, manifest, labels=beton.labels, sample_ids=beton.sample_ids)
    writer.add_views(NUM_VIEWS)
    for view in range(NUM_VIEWS + 1):
        for shard in writer.missing_shards(view):
            ids = writer.sample_ids(view)[shard * 4096 : (shard + 1) * 4096]
            logits = 3 * rng.standard_normal((len(ids), classes), dtype=np.float32)
            per_sample = {
                name: np.zeros(len(ids), dtype=dtype)
                for name, dtype in PER_SAMPLE_ARRAYS.items()
                if view == 0
            }
            rows = writer.codec(view).encode(logits, view_keys=ids, view=view)
            writer.write_shard(view, shard, rows, per_sample)
        writer.finish_view(view)
    return LogitStore.open(path)


def run(arguments: argparse.Namespace, workspace: Path) -> dict[str, Measured]:
    """Measure every arm."""
    device = resolve_device(arguments.device)
    beton = open_beton(workspace / "train.beton")
    image_size = beton.manifest.image_size
    classes = arguments.classes or beton.manifest.classes
    store = drawn_store(
        workspace / "stores" / f"drawn-{classes}.zarr",
        beton,
        classes=classes,
        image_size=image_size,
    )
    rng = np.random.default_rng(0)
    images = min(arguments.images, len(beton))
    sample_ids = np.sort(rng.choice(beton.sample_ids, images, replace=False))
    normalise = Normalise(beton.manifest.mean, beton.manifest.std).to(device)
    settings = TrainSettings(epochs=1_000, lr=1e-4, precision=arguments.precision)

    def loader(store: LogitStore | None) -> DistillLoader:
        return DistillLoader(
            beton, store, sample_ids, batch_size=arguments.batch_size, device=device
        )

    teacher = TeacherForward(
        make_model(arguments.teacher, num_classes=classes, image_size=image_size),
        num_classes=classes,
        mean=beton.manifest.mean,
        std=beton.manifest.std,
        device=device,
        precision=arguments.precision,
    )
    live = LiveLoader(
        beton, teacher, sample_ids, batch_size=arguments.batch_size, num_views=NUM_VIEWS
    )
    loaders = {
        "labels alone": RecordingLoader(loader(None)),
        "cached KD": RecordingLoader(loader(store)),
        "live teacher": RecordingLoader(live),
        "student on one batch": Synthetic(loader(store)),
        "teacher on one batch": Synthetic(loader(store)),
        "loader alone": RecordingLoader(loader(store)),
    }

    def training(loader_arm: RecordingLoader) -> Callable[[int], None]:
        torch.manual_seed(0)
        model = make_model(arguments.student, num_classes=classes, image_size=image_size)
        model = model.to(device).to(memory_format=torch.channels_last)
        trainer = Trainer(
            model,
            loader_arm,  # type: ignore[arg-type]  (it has all methods that the trainer uses)
            None,
            settings,
            normalise=normalise,
            run_dir=workspace,
            about={},
        )
        return trainer.train_epoch

    def answering(loader_arm: RecordingLoader) -> Callable[[int], None]:
        def answer(epoch: int) -> None:
            for batch in loader_arm.epoch(epoch):
                teacher(batch.images)

        return answer

    def reading(loader_arm: RecordingLoader) -> Callable[[int], None]:
        def read(epoch: int) -> None:
            for batch in loader_arm.epoch(epoch):
                assert batch.rows is not None

        return read

    def arm(name: str, loader_arm: RecordingLoader) -> Callable[[], Work]:
        kinds = {"teacher on one batch": answering, "loader alone": reading}
        run_epoch = kinds.get(name, training)(loader_arm)
        epochs = count(0)  # consecutive epochs, so that rows are prefetched during the previous one

        def once() -> Work:
            run_epoch(next(epochs))
            return loader_arm.work

        return once

    arms = {name: arm(name, loader_arm) for name, loader_arm in loaders.items()}
    measured = measure(arms, repeats=arguments.repeats)
    for loader_arm in loaders.values():
        loader_arm.close()
    return measured


def ratios_of(measured: dict[str, Measured]) -> dict[str, float]:
    """Return the ratios that kdcache claims, from the seconds per image of each arm."""
    seconds = {name: 1 / arm.images_per_second for name, arm in measured.items()}
    labels, cached, live = (seconds[name] for name in ("labels alone", "cached KD", "live teacher"))
    student, teacher = seconds["student on one batch"], seconds["teacher on one batch"]
    limit = (teacher + student) / student
    return {
        "P1: cached KD epoch / labels-alone epoch": cached / labels,
        "live-teacher epoch / cached KD epoch": live / cached,
        "its limit: (teacher + student) / student": limit,
        "P2: the ratio / its limit": live / cached / limit,
        "P3: cached KD / the slower of student and loader": max(student, seconds["loader alone"])
        / cached,
        f"epochs that pay for a pass of {PASS_VIEWS} views": PASS_VIEWS * teacher / (live - cached),
    }


def main() -> None:
    """Measure and print; with --record, write the result to a file."""
    start_as_the_command_line_does()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workspace", type=Path, help="packed data; digits when left out")
    parser.add_argument("--student", default="resnet20")
    parser.add_argument("--teacher", default="resnet56")
    parser.add_argument("--classes", type=int, help="C of the logits; the data's when left out")
    parser.add_argument("--images", type=int, default=4_096)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--record", action="store_true", help="write to benchmarks/results/")
    parser.add_argument("--tiny", action="store_true", help="a few images: does it still run?")
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.images, arguments.repeats, arguments.batch_size = 64, 1, 32
        arguments.student = arguments.teacher = "resnet8"
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        if arguments.workspace is None:
            pack(PackOptions("digits", workspace=workspace))
        else:
            for file in arguments.workspace.glob("train.*"):
                (workspace / file.name).symlink_to(file.resolve())
        measured = run(arguments, workspace)
        about = open_beton(workspace / "train.beton").manifest
    where = environment()
    print(f"\n{where['gpu'] or where['cpu']}, {where['cores']} cores, {arguments.repeats} repeats")
    sizes = f"{about.image_size} px, {arguments.precision}"
    print(f"{arguments.student} <- {arguments.teacher}, {sizes}\n")
    print_table(measured)
    ratios = ratios_of(measured)
    print()
    for name, ratio in ratios.items():
        print(f"{name:52}{ratio:>8.3f}")
    if arguments.record:
        options = {key: str(value) for key, value in vars(arguments).items()}
        options["workspace"] = "given" if arguments.workspace else "digits"  # no path of a machine
        arms = {name: arm._asdict() for name, arm in measured.items()}
        classes = arguments.classes or about.classes
        name = f"epoch_throughput-{arguments.student}-{about.image_size}px-c{classes}"
        path = record(name, {"options": options, "arms": arms, "ratios": ratios})
        print(f"\nrecorded in {path}")


if __name__ == "__main__":
    main()
