"""How much memory this process may take."""

from __future__ import annotations

import os
from pathlib import Path

from kdcache.cgroups import MEMBERSHIP, MOUNT, group_folders, read_limit

_LIMITS = ("memory.max", "memory.limit_in_bytes")
"""Where a control group's limit stands, of version 2 and 1."""


def available_bytes(*, mount: Path = MOUNT, membership: Path = MEMBERSHIP) -> int:
    """Return this machine's memory, or what its control groups allow, whichever is less.

    Args:
        mount: where control groups are mounted.
        membership: the file that says which groups this process is in.
    """
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for folder in group_folders("memory", mount=mount, membership=membership):
        texts = [read_limit(folder / name) for name in _LIMITS]
        found += [int(text) for text in texts if text.isdigit()]  # "max" where there is no limit
    return min(found)


def default_budget_bytes() -> int:
    """Return what buffers and staged rows may take, unless told: half of what is available."""
    return available_bytes() // 2
