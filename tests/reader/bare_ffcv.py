"""What FFCV does by itself: `python -m tests.reader.bare_ffcv BETON DAMAGED_BETON`, as JSON.

A process of its own, because these faults hang, leak threads and change FFCV for the whole process.
Its compiler is switched off: nothing here hangs on it, and it takes seconds.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Callable

import numpy as np
import torch
from ffcv.fields.decoders import (
    CenterCropRGBImageDecoder,
    IntDecoder,
    RandomResizedCropRGBImageDecoder,
    SimpleRGBImageDecoder,
)
from ffcv.loader import Loader, OrderOption
from ffcv.pipeline import Compiler
from ffcv.pipeline.operation import Operation
from ffcv.transforms import ToTensor

BATCH_SIZE = 16


class Fails(Operation):
    """An operation that raises."""

    def generate_code(self) -> Callable:
        def fail(*_arguments):
            raise ValueError("an error in the pipeline")

        return fail

    def declare_state_and_memory(self, previous_state):
        return previous_state, None


def loader(beton: str, *image, label=None, **options) -> Loader:
    """Open FFCV's loader with its defaults, a known order apart."""
    pipelines = {
        "image": [*(image or [SimpleRGBImageDecoder()]), ToTensor()],
        "label": label,
        "sample_id": [IntDecoder(), ToTensor()],
    }
    known = {"batch_size": BATCH_SIZE, "num_workers": 1, "order": OrderOption.SEQUENTIAL}
    return Loader(beton, pipelines=pipelines, **(known | options))


def ids(batches) -> list[int]:
    """Return the sample ids of all batches."""
    return [number for _, sample_ids in batches for number in sample_ids.flatten().tolist()]


def f1(beton):
    """Return whether the thread is dead while the loop would wait for its next batch."""
    threading.excepthook = lambda _: None
    iterator = iter(loader(beton, SimpleRGBImageDecoder(), Fails()))
    iterator.join(timeout=30)
    try:
        iterator.output_queue.get(timeout=0.2)
    except queue.Empty:
        return {"waits for a dead thread": not iterator.is_alive()}
    return {"waits for a dead thread": False}


def f4(damaged):
    """Return how many images of a damaged file come without an error."""
    size = (12, 12)
    decoder = CenterCropRGBImageDecoder(size, ratio=1)
    return {"images": len(ids(loader(damaged, decoder, drop_last=False)))}


def f5(beton):
    """Return how many held batches have been overwritten at the end of an epoch."""
    held = [(images, images.clone()) for images, _ in loader(beton, batch_size=4)]
    return {"overwritten": sum(not torch.equal(*pair) for pair in held), "batches": len(held)}


def f6(beton):
    """Return whether two loaders with one seed yield the same order and the same crops."""
    found = []
    for _ in range(2):
        decoder = RandomResizedCropRGBImageDecoder((12, 12))
        batches = loader(beton, decoder, seed=5, order=OrderOption.RANDOM)
        found.append([(images.clone(), sample_ids.clone()) for images, sample_ids in batches])
    pairs = list(zip(*found, strict=True))
    return {
        "same order": all(torch.equal(one[1], other[1]) for one, other in pairs),
        "same crops": all(torch.equal(one[0], other[0]) for one, other in pairs),
    }


def f10(beton):
    """Return what an id below zero gives, and how many batches a small subset."""
    return {
        "id of -1": ids(loader(beton, indices=[-1, 3], batch_size=2)),
        "batches of 15": len(list(loader(beton, indices=np.arange(15)))),
    }


def f11(beton):
    """Return which samples come after another subset was set."""
    one = loader(beton, drop_last=False)
    one.indices = np.arange(5)
    return {"samples": len(ids(one))}


def f15(beton):
    """Return how many samples of an epoch come."""
    return {"samples": len(ids(loader(beton)))}


def f17(beton):
    """Return how many threads are left of loops that were left."""
    before = threading.active_count()
    for _ in range(5):
        for _batch in loader(beton, batch_size=2):
            break
    return {"threads": threading.active_count() - before}


def f20(beton):
    """Return what more workers than cores give, and torch's threads afterwards."""
    torch.set_num_threads(2)
    loader(beton, num_workers=1)
    try:
        loader(beton, num_workers=10_000)
    except ValueError as error:
        return {"error": str(error), "torch threads": torch.get_num_threads()}
    return {"error": None, "torch threads": torch.get_num_threads()}


def f28(beton):
    """Return the bytes of a batch's scratch images."""
    decoder = RandomResizedCropRGBImageDecoder((12, 12))
    opened = loader(beton, decoder)
    (_, scratch), *_ = (
        memory
        for memory in opened.graph.allocate_memory(BATCH_SIZE, 5)["operation"].values()
        if isinstance(memory, tuple)
    )
    return {"scratch bytes": scratch.nbytes}


def main() -> None:
    """Print what each fault gives."""
    beton, damaged = sys.argv[1:]
    Compiler.set_enabled(False)
    found = {"F4": f4(damaged)}
    for show in (f1, f5, f6, f10, f11, f15, f17, f20, f28):
        found[show.__name__.upper()] = show(beton)
    sys.stdout.write(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)  # its threads would not let it end


if __name__ == "__main__":
    main()
