"""Shards encoded and written in a thread of ours, while the teacher answers the next.

At most `capacity` shards wait, so that memory is bounded: a teacher that is faster than the disk
waits for it. Encoding and writing release the interpreter.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from kdcache.store.build.teacher_pass import TeacherOutputs


class CommitThread:
    """CommitThread shards in the order in which they are put; use it in a `with` statement.

    Leaving the statement waits for everything that was put, also where it is left by an error or
    by Ctrl-C: what the teacher has answered is kept. A second Ctrl-C does not wait. An error of the
    thread is raised where the statement's own code next calls `raise_failure` or `put`, or where it
    is left; nothing is committed after it.

    Args:
        commit: encodes and writes one shard.
        capacity: most shards that wait.
    """

    def __init__(self, commit: Callable[[TeacherOutputs], None], *, capacity: int) -> None:
        self._commit = commit
        self._waiting: queue.Queue[TeacherOutputs | None] = queue.Queue(capacity)
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
        self._waiting.put(None)
        self._thread.join()
        if error is not self._failure:
            self.raise_failure()

    def put(self, answers: TeacherOutputs) -> None:
        """Hand over a shard; waits where as many wait as may."""
        self.raise_failure()
        self._waiting.put(answers)

    def raise_failure(self) -> None:
        """Raise what went wrong in the thread, with its traceback."""
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        while (answers := self._waiting.get()) is not None:
            if self._failure is not None:
                continue  # taken out, so that nobody waits for room
            try:
                self._commit(answers)
            except BaseException as failure:  # noqa: BLE001  (it is raised again where it is used)
                self._failure = failure
