"""Turn an out-of-memory error into one that names a batch size that fits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kdcache.errors import TeacherError

_OUT_OF_MEMORY_PHRASES = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
"""Phrases in the messages of torch's host allocator, of CUDA, and of cuBLAS and cuDNN."""


def run_forward(forward: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return the logits of a batch.

    Args:
        forward: maps (B, 3, S, S) images to (B, C) logits.
        images: (B, 3, S, S).

    Raises:
        TeacherError: if the batch does not fit into memory. The message names a batch size that
            fits: the batch is halved until a forward succeeds.
    """
    try:
        return forward(images)
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        # The frames of its traceback keep the memory of the failed forward alive.
        cause = error.with_traceback(None)
    fits = _largest_fitting_half(forward, images)
    reason = str(cause).partition("\n")[0]
    remedy = (
        f"Use --batch-size {fits}, which does"
        if fits
        else "Not one image does: use a smaller teacher or --image-size, or another --device"
    )
    raise TeacherError(
        parameter="batch_size",
        value=len(images),
        rule=(
            f"one that fits in the memory of {images.device} together with the "
            f"teacher ({reason}). {remedy}; shards that are written are kept, and "
            "with --allow-mixed the others are added under the new batch size"
        ),
    ) from cause


def _largest_fitting_half(forward: Callable[[Tensor], Tensor], images: Tensor) -> int:
    size = len(images) // 2
    while size:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            forward(images[:size])
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
        else:
            return size
        size //= 2
    return 0


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        phrase in str(error) for phrase in _OUT_OF_MEMORY_PHRASES
    )
