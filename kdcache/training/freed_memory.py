"""Keep freed memory in the process instead of returning it to the system.

Each step on a CPU allocates and frees the same activations. By default the C library
returns such large blocks to the kernel when they are freed. The kernel then zeroes their pages
again in the next step: 100,000 page faults in ten steps of ResNet-8.
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameter numbers from glibc's malloc.h."""

_MAX_INT = (1 << 31) - 1

_MAX_BLOCK_BYTES = 1 << 30
"""Blocks above this size are still returned to the system."""


def keep_freed_memory() -> bool:
    """Make this process keep the memory that it frees; return whether the C library supports it.

    Results do not change. The process stays at its peak size.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library than glibc
        return False
    kept = mallopt(_MMAP_THRESHOLD, _MAX_BLOCK_BYTES) and mallopt(_TRIM_THRESHOLD, _MAX_INT)
    return bool(kept)
