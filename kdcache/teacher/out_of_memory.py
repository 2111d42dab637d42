"""Too little memory for a batch: found out which batch would fit, and said so."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kdcache.errors import TeacherError

_OUT_OF_MEMORY_PHRASES = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
"""In the messages of torch's allocator for the host, of CUDA, and of cuBLAS and cuDNN."""


def run_forward(answer: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return the answers to a batch.

    Args:
        answer: maps (B, 3, S, S) to (B, C).
        images: the batch.

    Raises:
        TeacherError: if memory does not suffice; names this batch size and one to use, the first
            of the halves of this one that was tried and did fit.
    """
    try:
        return answer(images)
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        # Its frames hold what the forward had allocated.
        cause = error.with_traceback(None)
    fits = _largest_fitting_half(answer, images)
    reason = str(cause).partition("\n")[0]
    remedy = (
        f"Use --batch-size {fits}, which does"
        if fits
        else "Not one image does: use a smaller teacher or --image-size, or another --device"
    )
    raise TeacherError(
        f"--batch-size is {len(images)}, expected one that fits in the memory of {images.device} "
        f"together with the teacher ({reason}). {remedy}; shards that are written are kept, "
        "and with --allow-mixed the others are added under the new batch size"
    ) from cause


def _largest_fitting_half(answer: Callable[[Tensor], Tensor], images: Tensor) -> int:
    size = len(images) // 2
    while size:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            answer(images[:size])
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
        else:
            return size
        size //= 2
    return 0


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        sign in str(error) for sign in _OUT_OF_MEMORY_PHRASES
    )
