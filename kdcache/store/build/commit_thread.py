"""Encode and write shards in a thread, while the teacher computes the next ones.

At most `capacity` shards wait in the queue, so memory is bounded: a teacher that is faster than the
disk waits. Encoding and writing release the interpreter lock.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from kdcache.store.build.teacher_pass import TeacherOutputs


class CommitThread:
    """Commit shards in the order in which they are put. Use it in a `with` statement.

    Leaving the statement waits until all shards are committed, even after an error or Ctrl-C, so
    that no finished forward is lost. A second Ctrl-C does not wait. An error of the thread is
    raised by the next call of `raise_failure` or `put`, or at the end of the statement. After an
    error nothing more is committed.

    Args:
        commit: encodes and writes one shard.
        capacity: maximum number of shards that wait.
    """

    def __init__(self, commit: Callable[[TeacherOutputs], None], *, capacity: int) -> None:
        self._commit = commit
        self._queue: queue.Queue[TeacherOutputs | None] = queue.Queue(capacity)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="kdcache-commits", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._queue.put(None)
        self._thread.join()
        if error is not self._failure:
            self.raise_failure()

    def put(self, outputs: TeacherOutputs) -> None:
        """Queue a shard; wait if the queue is full."""
        self.raise_failure()
        self._queue.put(outputs)

    def raise_failure(self) -> None:
        """Raise the error of the thread, if there was one, with its traceback."""
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        while (outputs := self._queue.get()) is not None:
            if self._failure is not None:
                continue  # empty the queue, so that `put` does not wait forever
            try:
                self._commit(outputs)
            except BaseException as failure:  # noqa: BLE001  (raise_failure raises it again)
                self._failure = failure
