"""Find the memory that this process may take."""

from __future__ import annotations

import os
from pathlib import Path

from kdcache.cgroups import MEMBERSHIP, MOUNT, group_folders, read_limit

_LIMITS = ("memory.max", "memory.limit_in_bytes")
"""Files with a control group's limit, in versions 2 and 1."""


def available_bytes(*, mount: Path = MOUNT, membership: Path = MEMBERSHIP) -> int:
    """Return the bytes of this machine's memory, or of its control groups' limit if that is less.

    Args:
        mount: where control groups are mounted.
        membership: the file that lists the control groups of this process.
    """
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for folder in group_folders("memory", mount=mount, membership=membership):
        texts = [read_limit(folder / name) for name in _LIMITS]
        found += [int(text) for text in texts if text.isdigit()]  # "max" if there is no limit
    return min(found)


def default_budget_bytes() -> int:
    """Return the default bytes for buffers and prefetched rows: half of what is available."""
    return available_bytes() // 2
