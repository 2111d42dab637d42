"""Messages and progress bars on stderr; the command line decides whether they are shown."""

from __future__ import annotations

import logging
import sys

from tqdm import tqdm

logger = logging.getLogger("kdcache")


def progress_bar(*, total: int, unit: str, description: str, initial: int = 0) -> tqdm:
    """Return a bar with rate and time left, shown where messages are shown.

    Args:
        total: units of the whole work.
        unit: what is counted, such as "image".
        description: name of the work.
        initial: units that were done before.
    """
    return tqdm(
        total=total,
        initial=initial,
        unit=f" {unit}s",
        desc=description,
        disable=not logger.isEnabledFor(logging.INFO),
        # Into a log file a bar writes a line each time; keep those few.
        mininterval=0.2 if sys.stderr.isatty() else 15.0,
        file=sys.stderr,
        dynamic_ncols=True,
    )
