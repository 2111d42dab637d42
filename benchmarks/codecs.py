"""Measure size, fidelity and speed of each codec.

The first table compares the gradient of the distillation loss with decoded and with exact logits
(`kdcache.store.codecs.fidelity`): angle in degrees / norm ratio, and KL in nats, at several
temperatures. The KL of `sampled` is meaningless, because it is dominated by classes that were not
drawn. Real logits come from view 0 of stores. Synthetic logits have groups of classes, 512 features
whose variance falls as a power of their index, and a given mean top-1 probability. The quality of a
basis depends on that power. So synthetic logits show how codecs compare, not how good a codec is
for your teacher; `--codec auto` measures that.

The second table has the speed of encoding (one thread) and decoding, in batches of a loader's size.

    python benchmarks/codecs.py --store W/stores/resnet50.zarr
    python benchmarks/codecs.py --tiny
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from measure import Measured, Work, environment, measure, print_table, record

from kdcache.store.codecs.choice import choice_sample_ids, choose_codec
from kdcache.store.codecs.codec import Codec
from kdcache.store.codecs.request import CodecRequest
from kdcache.store.logit_store import LogitStore

TEMPERATURES = (1, 2, 4, 20)
REQUESTS = (
    *("topk(k=10)", "topk(k=32)", "lowrank(k=10, r=32)", "lowrank(k=10, r=64)"),
    *("lowrank(k=10, r=128)", "int8", "dense"),
    *(f"sampled(draws=50, temperature={temperature})" for temperature in TEMPERATURES),
    "auto",
)
FEATURES = 512
Logits = npt.NDArray[np.float32]


def drawn_logits(rows: int, classes: int, *, decay: float, confidence: float) -> Logits:
    """Return synthetic logits, (rows, classes) float32, with a given mean top-1 probability.

    Args:
        rows: number of rows.
        classes: number of classes C, in sqrt(C) groups that share a part of their weights.
        decay: the variance of feature j is j^-decay.
        confidence: mean of the largest probability, in (1 / C, 1).
    """
    rng = np.random.default_rng(0)
    groups = max(2, int(classes**0.5))
    group_of = np.arange(classes) % groups
    weights = rng.standard_normal((classes, FEATURES), dtype=np.float32)
    weights += 0.7 * rng.standard_normal((groups, FEATURES), dtype=np.float32)[group_of]
    weights *= np.arange(1, FEATURES + 1, dtype=np.float32) ** (-decay / 2)
    own = rng.standard_normal((rows, FEATURES), dtype=np.float32) @ weights.T
    own *= 2 / own.std()
    labels = rng.integers(0, classes, rows)
    lengths = np.linalg.norm(weights, axis=1, keepdims=True)
    towards = (weights / lengths)[labels] @ weights.T
    towards /= towards[np.arange(rows), labels].mean()
    low, high = 0.0, 100.0
    for _ in range(20):
        middle = (low + high) / 2
        logits = own[:512] + middle * towards[:512]
        logits -= logits.max(axis=1, keepdims=True)
        sure = float((1 / np.exp(logits).sum(axis=1)).mean())
        low, high = (middle, high) if sure < confidence else (low, middle)
    return own + low * towards


def sources(arguments: argparse.Namespace) -> Iterator[tuple[str, Logits, npt.NDArray[np.int64]]]:
    """Yield name, logits and sample ids of each set of logits."""
    for path in arguments.store:
        store = LogitStore.open(path)
        manifest = store.manifest
        ids = choice_sample_ids(manifest.samples, manifest.classes)
        yield f"{path.stem}, C={manifest.classes}, real", store.logits(ids, view=0), ids
    drawn = [(1000, 1.0, 0.87), (1000, 1.0, 0.6), (1000, 1.25, 0.87), (21_841, 1.0, 0.5)]
    for classes, decay, confidence in [(100, 1.0, 0.87)] if arguments.tiny else drawn:
        count = len(choice_sample_ids(arguments.rows, classes))
        name = f"drawn, C={classes}, variance j^-{decay}, top-1 {confidence}"
        logits = drawn_logits(count, classes, decay=decay, confidence=confidence)
        yield name, logits, np.arange(count)


def fidelity_table(logits: Logits, ids: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
    """Measure every request on one set of logits; return its rows, smallest first."""
    rows: list[dict[str, Any]] = []
    for text in REQUESTS:
        parameters = CodecRequest.parse(text).parameters
        if parameters.get("k", 0) < logits.shape[1] and parameters.get("r", 0) <= logits.shape[1]:
            table = choose_codec(text, logits, ids).table
            rows += [row | {"request": text} for row in table if row["chosen"]]
    return sorted(rows, key=lambda row: row["row_bytes"])


def print_fidelity(name: str, table: list[dict[str, Any]], dense_bytes: int) -> None:
    """Print the table of one set of logits."""
    heads = "".join(f"{f'T={temperature}':>24}" for temperature in TEMPERATURES)
    print(f"\n{name}\n{'codec':38}{'bytes':>7}{'1/dense':>9}{heads}")
    for row in table:
        found = {int(one["temperature"]): one for one in row["fidelity"]}
        cells = "".join(
            f"{one['angle_degrees']:>8.2f} / {one['norm_ratio']:.3f} {one['kl']:>7.4f}"
            if (one := found.get(temperature))
            else f"{'-':>24}"
            for temperature in TEMPERATURES
        )
        label = f"auto: {row['codec']}" if row["request"] == "auto" else row["codec"]
        print(f"{label:38}{row['row_bytes']:>7,}{dense_bytes / row['row_bytes']:>9.1f}{cells}")


def speeds(classes: int, rows: int, batch_size: int, repeats: int) -> dict[str, Measured]:
    """Measure encoding and decoding of the same rows by every codec."""
    logits = drawn_logits(max(rows, 1024), classes, decay=1.0, confidence=0.87)
    ids = np.arange(rows)
    work = Work(rows, int(ids.sum()))
    arms: dict[str, Callable[[], Work]] = {}

    def add(codec: Codec) -> None:
        encoded = codec.encode(logits[:rows], view_keys=ids, view=1)

        def encode() -> Work:
            for start in range(0, rows, batch_size):
                batch = slice(start, start + batch_size)
                codec.encode(logits[:rows][batch], view_keys=ids[batch], view=1)
            return work

        def decode(staged: Any) -> Callable[[], Work]:
            def run() -> Work:
                for start in range(0, rows, batch_size):
                    codec.decode(staged[start : start + batch_size])
                return work

            return run

        short = codec.name if codec.name != "lowrank" else f"lowrank {codec.parameters['r']}"
        arms[f"encode {short}"] = encode
        arms[f"decode {short}, numpy"] = decode(encoded)
        arms[f"decode {short}, torch"] = decode(torch.from_numpy(encoded))

    requests = ("dense", "int8", "topk", "lowrank(r=64)", "sampled")
    for request in requests:
        add(choose_codec(request, logits, np.arange(len(logits))).codec)
    return measure(arms, repeats=repeats)


def main() -> None:
    """Measure and print; with --record, write the result to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--store", type=Path, action="append", default=[], help="store of real logits"
    )
    parser.add_argument("--rows", type=int, default=8_192, help="synthetic rows of each table")
    parser.add_argument("--batch-size", type=int, default=256, help="batch size of the timed rows")
    parser.add_argument("--timed-rows", type=int, default=8_192)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--record", action="store_true", help="write to benchmarks/results/")
    parser.add_argument("--tiny", action="store_true", help="a few rows: does it still run?")
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.rows, arguments.timed_rows, arguments.repeats = 400, 512, 1
    tables = {}
    for name, logits, ids in sources(arguments):
        tables[name] = fidelity_table(logits, ids)
        print_fidelity(name, tables[name], 2 * logits.shape[1])
    classes = 100 if arguments.tiny else 1000
    measured = speeds(classes, arguments.timed_rows, arguments.batch_size, arguments.repeats)
    where = environment()
    print(f"\n{where['gpu'] or where['cpu']}, {where['cores']} cores, {arguments.repeats} repeats")
    print(f"C={classes}, batches of {arguments.batch_size}; an image is a row\n")
    print_table(measured)
    if arguments.record:
        options = {key: str(value) for key, value in vars(arguments).items()}
        options["store"] = ", ".join(path.name for path in arguments.store)
        arms = {name: arm._asdict() for name, arm in measured.items()}
        path = record("codecs", {"options": options, "fidelity": tables, "arms": arms})
        print(f"\nrecorded in {path}")


if __name__ == "__main__":
    main()
