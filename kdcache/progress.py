"""Write messages and progress bars to stderr, if the command line enables them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from kdcache.errors import in_python

logger = logging.getLogger("kdcache")
"""Its messages name options as arguments of a call from Python, except in `words_for_shell`."""


def _word_for_python(record: logging.LogRecord) -> bool:
    record.msg, record.args = in_python(record.getMessage()), ()
    return True


logger.addFilter(_word_for_python)


@contextmanager
def words_for_shell() -> Iterator[None]:
    """Let the messages of a block name options as a shell does."""
    logger.removeFilter(_word_for_python)
    try:
        yield
    finally:
        logger.addFilter(_word_for_python)


def progress_bar(*, total: int, unit: str, description: str, initial: int = 0) -> tqdm:
    """Return a bar with rate and remaining time; it is visible when messages are.

    Args:
        total: number of units of the whole work.
        unit: name of one unit, such as "image".
        description: name of the work.
        initial: number of units that are done already.
    """
    return tqdm(
        total=total,
        initial=initial,
        unit=f" {unit}s",
        desc=description,
        disable=not logger.isEnabledFor(logging.INFO),
        # In a log file, each update of a bar is a line of its own, so update rarely.
        mininterval=0.2 if sys.stderr.isatty() else 15.0,
        file=sys.stderr,
        dynamic_ncols=True,
    )


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, such as `1 epoch` or `2 epochs`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
