"""Copy each batch to a CUDA device while the training step on the previous batch runs.

Each batch is copied to pinned memory, and from there to the device on a separate stream. torch
keeps a pinned block until its copy is done, and a batch's device memory until the step's stream has
read it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kdcache.loader.batch import Batch


def prefetch_to_cuda(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield batches on a CUDA device; a batch's copy starts before the previous batch is yielded.

    Args:
        batches: batches on the host.
        device: a CUDA device. Work on a batch in its current stream waits for the copy.
    """
    stream = torch.cuda.Stream(device)
    waiting: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            copying = _start_copy(batch, device)
        in_flight = copying, stream.record_event()
        if waiting is not None:
            yield _wait_for_copy(*waiting, device)
        waiting = in_flight
    if waiting is not None:
        yield _wait_for_copy(*waiting, device)


def _start_copy(batch: Batch, device: torch.device) -> Batch:
    def move(tensor: Tensor) -> Tensor:
        pinned = torch.empty_like(tensor, pin_memory=True).copy_(tensor)
        return pinned.to(device, non_blocking=True)

    return batch.map_tensors(move)


def _wait_for_copy(batch: Batch, copied: torch.cuda.Event, device: torch.device) -> Batch:
    current = torch.cuda.current_stream(device)
    current.wait_event(copied)

    def record(tensor: Tensor) -> Tensor:
        tensor.record_stream(current)
        return tensor

    return batch.map_tensors(record)
