"""Set the precision at which a model runs: autocast, and TF32 for matrix products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from kdcache.options import Precision

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def teacher_precision(requested: Precision | None, device: torch.device) -> Precision:
    """Return the precision of a teacher: the requested one, else fp16 on CUDA and fp32 on a CPU."""
    return requested or ("fp16" if device.type == "cuda" else "fp32")


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Return the autocast context of a precision; it does nothing for fp32 and tf32."""
    if precision in _AUTOCAST:
        return torch.autocast(device.type, dtype=_AUTOCAST[precision])
    return nullcontext()


@contextmanager
def matmul_precision(precision: Precision) -> Iterator[None]:
    """Allow TF32 inside the context if `precision` is tf32, else forbid it."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
