"""Batches on their way to a CUDA device: one ahead, while the step before runs.

Each batch is copied to pinned memory, and from there on a stream of its own. torch keeps a pinned
block until its copy is done, and a batch's device memory until the step's stream has read it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kdcache.loader.batch import Batch


def prefetch_to_cuda(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield batches on a CUDA device; each starts to cross before the one before it is yielded.

    Args:
        batches: on the host; the images' buffer may be filled again once the next is asked for.
        device: a CUDA device; what the present stream does with a batch waits for its copy.
    """
    stream = torch.cuda.Stream(device)
    waiting: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            crossing = _moved(batch, device)
        started = crossing, stream.record_event()
        if waiting is not None:
            yield _arrived(*waiting, device)
        waiting = started
    if waiting is not None:
        yield _arrived(*waiting, device)


def _moved(batch: Batch, device: torch.device) -> Batch:
    def move(tensor: Tensor) -> Tensor:
        pinned = torch.empty_like(tensor, pin_memory=True).copy_(tensor)
        return pinned.to(device, non_blocking=True)

    return batch._replace(
        images=move(batch.images),
        labels=move(batch.labels),
        sample_ids=move(batch.sample_ids),
        rows=batch.rows and batch.rows._replace(encoded=move(batch.rows.encoded)),
        weights=None if batch.weights is None else move(batch.weights),
    )


def _arrived(batch: Batch, copied: torch.cuda.Event, device: torch.device) -> Batch:
    present = torch.cuda.current_stream(device)
    present.wait_event(copied)
    for tensor in (
        batch.images,
        batch.labels,
        batch.sample_ids,
        *([batch.rows.encoded] if batch.rows else []),
        *([batch.weights] if batch.weights is not None else []),
    ):
        tensor.record_stream(present)
    return batch
