"""Measure the time of the loss in a training step, forward and backward, for each codec.

The arms of a table share student logits, labels and teacher logits. `decoded` decodes the rows to
(B, C) and computes the loss from these; `sparse` computes it from the sparse form of the rows, if
the codec has one. `kdcache train` uses the sparse form from `MIN_CLASSES` classes on. Other arms
are the labels alone and the other losses. Before anything is timed, the benchmark checks that both
forms give the same loss and gradient. The logits are random, which does not change the time.

    python benchmarks/losses.py
    python benchmarks/losses.py --tiny
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from measure import Measured, Work, environment, measure, print_table, record
from torch import Tensor

from kdcache.loader.staging import Rows
from kdcache.options import TrainOptions
from kdcache.store.codecs.choice import choose_codec
from kdcache.training.losses import loss as loss_module
from kdcache.training.losses.loss import Loss
from kdcache.training.losses.settings import LossSettings

TEMPERATURE = 4.0
CODECS = ("dense", "int8", "lowrank", "topk", "sampled")
HAVE_SPARSE = ("topk", "sampled")


class Arm(NamedTuple):
    """A loss of one batch, and the form in which it reads the rows."""

    loss: Loss
    rows: Rows | None
    min_classes: int
    """It uses the sparse form from this many classes on."""

    def step(self, student: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and its gradient."""
        student = student.detach().requires_grad_()
        loss_module.MIN_CLASSES = self.min_classes
        total = self.loss(student, self.rows, labels, progress=1.0).total
        total.backward()
        assert student.grad is not None
        return total.detach(), student.grad


def request(name: str, classes: int) -> str:
    """Return a request for a codec that fits the number of classes."""
    k = min(10, classes - 1)
    return {
        "topk": f"topk(k={k})",
        "lowrank": f"lowrank(k={k}, r={min(64, classes)})",
        "sampled": f"sampled(draws=50, temperature={TEMPERATURE})",
    }.get(name, name)


def arms_of(classes: int, batch_size: int) -> dict[str, Arm]:
    """Return name -> arm for one shape."""
    rng = np.random.default_rng(1)
    logits = 3 * rng.standard_normal((1024, classes), dtype=np.float32)
    ids = np.arange(len(logits))
    plain = loss_of()
    arms = {"labels alone": Arm(plain, None, 0)}
    for name in CODECS:
        codec = choose_codec(request(name, classes), logits, ids).codec
        encoded = codec.encode(logits[:batch_size], view_keys=ids[:batch_size], view=1)
        rows = Rows(torch.from_numpy(encoded), codec)
        arms[f"kd, {name}, decoded"] = Arm(plain, rows, classes + 1)
        if name in HAVE_SPARSE:
            arms[f"kd, {name}, sparse"] = Arm(plain, rows, 0)
    dense = arms["kd, dense, decoded"]
    arms["kd standardise, dense"] = dense._replace(loss=loss_of(standardise=True))
    for method in ("dkd", "dist"):
        arms[f"{method}, dense"] = dense._replace(loss=loss_of(loss=method))
    return arms


def loss_of(**options: str | bool) -> Loss:
    """Return the loss that `kdcache train` makes from its options."""
    return Loss(LossSettings.of(TrainOptions(temperature=TEMPERATURE, **options)))  # type: ignore[arg-type]


def check_equal(arms: dict[str, Arm], student: Tensor, labels: Tensor) -> None:
    """Check that the sparse and the decoded form give the same loss and gradient."""
    for name in HAVE_SPARSE:
        decoded, sparse = (
            arms[f"kd, {name}, {form}"].step(student, labels) for form in ("decoded", "sparse")
        )
        torch.testing.assert_close(sparse[0], decoded[0], rtol=1e-5, atol=0)
        largest = float(decoded[1].abs().max())
        torch.testing.assert_close(sparse[1], decoded[1], rtol=1e-5, atol=1e-5 * largest)


def measure_shape(
    classes: int, batch_size: int, *, numbers: int, repeats: int
) -> dict[str, Measured]:
    """Measure all arms for one shape; each row counts as an image."""
    generator = torch.Generator().manual_seed(0)
    student = 2 * torch.randn(batch_size, classes, generator=generator)
    labels = torch.randint(classes, (batch_size,), generator=generator)
    arms = arms_of(classes, batch_size)
    check_equal(arms, student, labels)
    steps = min(256, -(-numbers // student.numel()))

    def run(arm: Arm) -> Callable[[], Work]:
        def steps_of_arm() -> Work:
            for _ in range(steps):
                arm.step(student, labels)
            return Work(steps * batch_size, steps)

        return steps_of_arm

    return measure({name: run(arm) for name, arm in arms.items()}, repeats=repeats)


def main() -> None:
    """Measure and print; with --record, write the result to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 200, 1000, 21_841])
    parser.add_argument("--batch-size", type=int, nargs="+", default=[128, 256])
    parser.add_argument(
        "--numbers",
        type=int,
        default=1 << 19,
        help="minimum number of student logits in a timed run",
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--record", action="store_true", help="write to benchmarks/results/")
    parser.add_argument("--tiny", action="store_true", help="one small shape: does it still run?")
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.classes, arguments.batch_size = [20], [8]
        arguments.numbers, arguments.repeats = 1, 1
    where = environment()
    print(f"{where['gpu'] or where['cpu']}, {where['cores']} cores, {arguments.repeats} repeats")
    tables = {}
    for classes in arguments.classes:
        for batch_size in arguments.batch_size:
            name = f"C={classes}, B={batch_size}"
            measured = measure_shape(
                classes, batch_size, numbers=arguments.numbers, repeats=arguments.repeats
            )
            tables[name] = {arm: found._asdict() for arm, found in measured.items()}
            print(f"\n{name}; an image is a row, forward and backward")
            print_table(measured)
            for arm, found in measured.items():
                steps = found.num_images / batch_size
                # Record the minimum too: other load on the machine affects it least.
                tables[name][arm]["least_ms_per_step"] = round(1000 * min(found.seconds) / steps, 4)
    if arguments.record:
        options = {key: str(value) for key, value in vars(arguments).items()}
        print(f"\nrecorded in {record('losses', {'options': options, 'shapes': tables})}")


if __name__ == "__main__":
    main()
