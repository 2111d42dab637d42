"""How the golden files were made: `python -m tests.golden.regenerate`.

They hold streams of numbers that must never change, because stores and runs on disk depend on
them: the views behind cached rows, the order of an epoch, and what is drawn for a seed. A change
here is a new format version and an entry in the change log, never a silent update.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np

from kdcache.data.photometric_parameters import photometric_parameters
from kdcache.data.views import view_parameters
from kdcache.options import PruningOptions
from kdcache.reader.order import epoch_order
from kdcache.selection.pruning import select_ids

FOLDER = Path(__file__).parent

POLICIES = ["pad-crop(4, flip=True)", "rrc(scale=(0.08, 1.0), ratio=(0.75, 1.3333), flip=True)"]
SEEDS = [0, 1, 2**64 - 1]
VIEWS = [0, 1, 2, 9]
SAMPLE_IDS = [0, 1, 2, 1_281_166, 2**40]
SIZES = [[32, 32], [375, 500], [500, 333], [64, 65], [1000, 20]]
"""Height and width of the image of each sample id; the last needs the fallback box."""


def view_parameter_cases() -> list[dict]:
    """Return the boxes of a few views of a few samples."""
    return [
        {
            "policy": policy,
            "seed": seed,
            "view": view,
            "sample_ids": SAMPLE_IDS,
            "sizes": SIZES,
            "boxes": view_parameters(policy, seed, view, SAMPLE_IDS, SIZES).tolist(),
        }
        for policy, seed, view in itertools.product(POLICIES, SEEDS, VIEWS)
    ]


CHANGING_POLICIES = [
    "pad-crop(4, brightness=0.4, contrast=0.4, saturation=0.4, erase=0.5)",
    "rrc(brightness=(0.5, 2), erase=1, erase_scale=(0.3, 1), erase_ratio=(0.1, 10))",
]
IMAGE_SIZES = [8, 224]


def photometric_parameter_cases() -> list[dict]:
    """Return the changes of the pixels of a few views of a few samples."""
    return [
        {
            "policy": policy,
            "seed": seed,
            "view": view,
            "sample_ids": SAMPLE_IDS,
            "image_size": image_size,
            "changes": photometric_parameters(policy, seed, view, SAMPLE_IDS, image_size).tolist(),
        }
        for policy, seed, view, image_size in itertools.product(
            CHANGING_POLICIES, SEEDS, VIEWS, IMAGE_SIZES
        )
    ]


def epoch_orders() -> list[dict]:
    """Return the order of a few epochs over 20 samples."""
    sample_ids = np.arange(20)
    return [
        {
            "seed": seed,
            "epoch": epoch,
            "samples": len(sample_ids),
            "order": epoch_order(sample_ids, seed=seed, epoch=epoch).tolist(),
        }
        for seed, epoch in [(0, 0), (0, 1), (1, 0), (2**40, 99)]
    ]


def selections() -> list[dict]:
    """Return what the methods with a draw keep of 60 samples."""
    samples = np.arange(60)
    scores = (samples * 7919 % 1009 / 1009).astype(np.float32)
    labels = samples * samples % 7 % 3
    return [
        {
            "method": method,
            "seed": seed,
            "scores": scores.tolist(),
            "labels": labels.tolist(),
            "kept": select_ids(
                scores,
                labels,
                PruningOptions(method=method, keep=0.3, seed=seed),
                num_classes=3,
                correct=samples % 4 > 0,
            ).tolist(),
        }
        for method in ("random", "stratified", "beta", "class-adaptive")
        for seed in (0, 1, 2**40)
    ]


def write(name: str, cases: list[dict]) -> None:
    """Write one case per line."""
    lines = ",\n".join(json.dumps(case) for case in cases)
    (FOLDER / name).write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    write("view_parameters.json", view_parameter_cases())
    write("photometric_parameters.json", photometric_parameter_cases())
    write("epoch_order.json", epoch_orders())
    write("selections.json", selections())
