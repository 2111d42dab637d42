"""Define `Iteration`: the batches of one loop over a loader, which serves one loop at a time."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

from kdcache.errors import ConfigError
from kdcache.loader.batch import Batch


class Iteration(Iterator[Batch]):
    """An iteration that a later one of the same loader can end.

    Args:
        start: is called with this iteration before its first batch is read.
        batches: the batches.
    """

    def __init__(self, start: Callable[[Iteration], None], batches: Generator[Batch]) -> None:
        self._start = start
        self._batches = batches
        self._has_started = False
        self._is_superseded = False

    def __next__(self) -> Batch:
        """Return the next batch.

        Raises:
            ConfigError: if a later iteration of the loader has ended this one.
        """
        if self._is_superseded:
            raise ConfigError(
                "a later loop over this DistillLoader has ended this one, expected one loop at a "
                "time. For two loops side by side, make another DistillLoader"
            )
        if not self._has_started:
            self._has_started = True
            self._start(self)
        return next(self._batches)

    def supersede(self) -> None:
        """End this iteration for a later one.

        Raises:
            ConfigError: if another thread waits for its next batch.
        """
        try:
            self._batches.close()
        except ValueError:  # Python's "generator already executing"
            raise ConfigError(
                "another thread reads from this DistillLoader, expected one loop at a time. Make "
                "another DistillLoader"
            ) from None
        self._is_superseded = True

    def close(self) -> None:
        """Stop the threads that serve it; it yields no more batches."""
        self._batches.close()
