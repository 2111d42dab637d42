"""How much memory this process may take."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Where a container's limit stands, of version 2 and 1 of control groups."""


def available_bytes(limits: Iterable[Path] = _LIMITS) -> int:
    """Return this machine's memory, or what a container allows, whichever is less."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in limits:
        # "max" where there is none; unreadable where there are no control groups.
        text = path.read_text(encoding="ascii").strip() if path.is_file() else "max"
        found += [int(text)] if text.isdigit() else []
    return min(found)


def default_budget_bytes() -> int:
    """Return what buffers and staged rows may take, unless told: half of what is available."""
    return available_bytes() // 2
