"""Measure images per second of the teacher pass, and of each of its parts alone.

All arms process the same images and views: the pass as `kdcache build-logits` runs it; the forward
pass alone, on a batch that is already on the device; reading and decoding alone; encoding and
writing alone. The weights are random, which does not change the time.

    python benchmarks/teacher_pass.py digits --teacher resnet20
    python benchmarks/teacher_pass.py PHOTOS --teacher resnet50 --views 8 --images 1024
    python benchmarks/teacher_pass.py --tiny
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
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
from torch import Tensor

from kdcache.compute.device import resolve_device
from kdcache.data.beton import Beton, open_beton
from kdcache.data.pack import pack
from kdcache.models.registry import make_model
from kdcache.options import BuildLogitsOptions, PackOptions
from kdcache.progress import logger
from kdcache.store.build.plan import Part, Shard, missing_work
from kdcache.store.build.preflight import run_preflight
from kdcache.store.build.shard_builder import ShardBuilder, commit_shard
from kdcache.store.build.target import target_manifest
from kdcache.store.build.teacher_pass import TeacherOutputs, run_teacher
from kdcache.store.writer import StoreWriter
from kdcache.teacher.ensemble import Ensemble
from kdcache.teacher.forward import TeacherForward
from kdcache.teacher.teacher import Teacher, tensor_digest

WARM_UPS = 1


class TimedTeacher:
    """A teacher that measures its computing time on the device.

    Attributes:
        seconds: computing time on the device since `reset`.
    """

    def __init__(self, forward: TeacherForward) -> None:
        self._forward = forward
        self._spans: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._forward, name)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits of a batch."""
        if self._forward.device.type != "cuda":
            return self._forward(images)
        span = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        span[0].record()
        logits = self._forward(images)
        span[1].record()
        self._spans.append(span)
        return logits

    def reset(self) -> None:
        """Reset the measured time to 0."""
        self._spans.clear()

    @property
    def seconds(self) -> float:
        """Computing time of all forward passes since `reset`, in seconds."""
        torch.cuda.synchronize()
        return sum(start.elapsed_time(end) for start, end in self._spans) / 1000


class ZeroTeacher:
    """A teacher that returns zeros at once, so that only reading and decoding take time."""

    features = None
    device = torch.device("cpu")

    def __init__(self, num_classes: int, batch_size: int) -> None:
        self.num_classes = num_classes
        self._logits = torch.zeros(batch_size, num_classes)

    def __call__(self, _images: Tensor) -> Tensor:
        """Return zeros."""
        return self._logits


def teacher_of(name: str, beton: Beton, image_size: int, classes: int) -> Ensemble:
    """Return a teacher with random weights."""
    torch.manual_seed(0)
    model = make_model(name, num_classes=classes, image_size=image_size)
    for head in (module for module in model.modules() if isinstance(module, torch.nn.Linear)):
        torch.nn.init.normal_(head.weight, std=0.02)  # torchvision's ViT starts with zeros
    about = beton.manifest
    member = Teacher(
        name=name,
        spec=name,
        arch=name,
        digest=tensor_digest(model),
        model=model,
        mean=about.mean,
        std=about.std,
        reported_top1=None,
    )
    return Ensemble([member], None, image_size, 0.875, "bilinear")


def run(
    arguments: argparse.Namespace, beton: Beton, folder: Path
) -> tuple[dict[str, Measured], float | None]:
    """Measure every arm; return the measurements, and on CUDA the idle fraction of the GPU."""
    device = resolve_device(arguments.device)
    size = arguments.image_size or beton.manifest.image_size
    teacher = teacher_of(arguments.teacher, beton, size, beton.manifest.classes)
    options = BuildLogitsOptions(
        workspace=folder,
        views=arguments.views,
        batch_size=arguments.batch_size,
        precision=arguments.precision,
        image_size=size,
        policy=arguments.policy,
        codec=arguments.codec,
    )
    wanted = target_manifest(options, beton, teacher, device, None, beton.sample_ids)
    forward = TimedTeacher(
        teacher.forward(
            num_classes=wanted.classes,
            device=device,
            precision=wanted.precision,
        )
    )
    run_preflight(forward, beton, wanted.teacher_views, wanted.batch_size)  # type: ignore[arg-type]

    def fresh_store(number: int) -> StoreWriter:
        writer = StoreWriter.create(
            folder / f"{number}.zarr", wanted, labels=beton.labels, sample_ids=beton.sample_ids
        )
        writer.add_views(arguments.views)
        return writer

    runs = arguments.repeats + WARM_UPS
    stores = iter([fresh_store(number) for number in range(2 * runs)])
    some = fresh_store(2 * runs)
    shards = max(1, arguments.images // wanted.shard_rows)
    views = range(arguments.views + 1)
    work = [shard for shard in missing_work(some, views, Part()) if shard.index < shards]
    done = Work(
        num_images=sum(len(shard.rows) for shard in work),
        checksum=int(sum(shard.rows.sum() for shard in work)),
    )
    batches = sum(-(-len(shard.rows) // wanted.batch_size) for shard in work)
    images = torch.randint(
        0, 256, (wanted.batch_size, 3, size, size), dtype=torch.uint8, device=device
    ).contiguous(memory_format=torch.channels_last)
    idle: list[float] = []

    def whole() -> Work:
        forward.reset()
        builder = ShardBuilder(options, next(stores), wanted, beton, forward, Part())  # type: ignore[arg-type]
        seconds = builder.build_shards(work)
        if device.type == "cuda":
            idle.append(1 - forward.seconds / seconds)
        return done

    def forward_alone() -> Work:
        for _ in range(batches):
            forward(images)
        return done

    def decode_alone() -> Work:
        teacher_of_zeros = ZeroTeacher(wanted.classes, wanted.batch_size)
        rows = [
            answers.shard.rows
            for answers in run_teacher(
                teacher_of_zeros,  # type: ignore[arg-type]
                work,
                beton,
                wanted.teacher_views,
                batch_size=wanted.batch_size,
                num_workers=None,
            )
        ]
        return Work(sum(map(len, rows)), int(sum(ids.sum() for ids in rows)))

    def write_alone() -> Work:
        writer = next(stores)
        for shard in work:
            commit_shard(writer, beton, drawn_answers(shard, wanted.classes), None)
        return done

    arms: dict[str, Callable[[], Work]] = {
        "whole pass": whole,
        "forward alone": forward_alone,
        "decode alone": decode_alone,
        "write alone": write_alone,
    }
    measured = measure(arms, repeats=arguments.repeats, warm_ups=WARM_UPS)
    return measured, float(np.median(idle[WARM_UPS:])) if idle else None


def drawn_answers(shard: Shard, classes: int) -> TeacherOutputs:
    """Return random outputs for a shard; their values do not matter."""
    count = len(shard.rows)
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(count, classes, generator=generator)
    labels = torch.zeros(count, dtype=torch.int64)
    keys = shard.rows.astype(np.uint64)
    return TeacherOutputs(shard, logits, labels, keys, None, lambda: None)


def main() -> None:
    """Measure and print; with --record, write the result to a file."""
    start_as_the_command_line_does()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", default="digits", help="as for kdcache pack")
    parser.add_argument("--write-mode", choices=("auto", "raw", "jpg"), default="auto")
    parser.add_argument("--image-size", type=int, help="the data's when left out")
    parser.add_argument("--policy", help="the data's when left out")
    parser.add_argument("--teacher", default="resnet20", help="kdcache's or torchvision's name")
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--codec", default="dense")
    parser.add_argument(
        "--images",
        type=int,
        default=1_024,
        help="images of each view, rounded down to whole shards",
    )
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16", "fp16"))
    parser.add_argument("--record", action="store_true", help="write to benchmarks/results/")
    parser.add_argument("--tiny", action="store_true", help="a few images: does it still run?")
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.images, arguments.repeats, arguments.batch_size = 64, 1, 32
        arguments.teacher = "resnet8"
    logger.setLevel("WARNING")
    with tempfile.TemporaryDirectory(prefix="kdcache-pass-") as name:
        folder = Path(name)
        pack(
            PackOptions(
                arguments.source, workspace=folder, val_fraction=0, write_mode=arguments.write_mode
            )
            if arguments.source != "digits"
            else PackOptions("digits", workspace=folder, write_mode=arguments.write_mode)
        )
        beton = open_beton(folder / "train.beton")
        measured, idle = run(arguments, beton, folder)
        size = arguments.image_size or beton.manifest.image_size
        mode = beton.manifest.write_mode
    print_table(measured)
    rates = {name: arm.images_per_second for name, arm in measured.items()}
    whole, alone = rates["whole pass"], rates["forward alone"]
    parts = {name: rate for name, rate in rates.items() if name != "whole pass"}
    limit = min(parts, key=lambda name: parts[name])
    # On a CPU, the parts share the same cores, so this is the limit of the whole pass.
    in_turn = 1 / sum(1 / rate for rate in parts.values())
    used = {name: arm.cpu_ms_per_image for name, arm in measured.items()}
    # CPU time varies less on a shared machine. It means something only for a teacher on the CPU.
    by_cpu = used["forward alone"] / used["whole pass"]
    print(f"P6, whole / forward alone: {whole / alone:.3f}; by processor time: {by_cpu:.3f}")
    print(f"slowest part: {limit}")
    print(f"whole / all three parts one after the other: {whole / in_turn:.3f}")
    if idle is not None:
        print(f"share of the pass in which the GPU computed nothing: {idle:.1%}")
    if arguments.record:
        content = {
            "arguments": {key: str(value) for key, value in vars(arguments).items()}
            | {"source": Path(arguments.source).name},  # no path of this machine
            "image_size": size,
            "write_mode": mode,
            "p6": whole / alone,
            "p6_by_processor_time": by_cpu,
            "whole_over_parts_in_turn": whole / in_turn,
            "slowest_part": limit,
            "gpu_idle_share": idle,
            "arms": {name: arm._asdict() for name, arm in measured.items()},
        }
        teacher = arguments.teacher.replace("_", "-")
        print(record(f"teacher-pass-{teacher}-{size}px-{mode}-v{arguments.views}", content))
    else:
        print(environment())


if __name__ == "__main__":
    main()
