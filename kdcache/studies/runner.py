"""Run the work of a study: make what cells need, then train the cells, several at a time.

Work is a list in order of priority. Whenever a process may start, the runner takes the first piece
that is not done, whose needs are made, and whose lock is free. So several runners may share one
workspace; a runner waits only for what another one is making.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcache.errors import TrainingError
from kdcache.progress import logger
from kdcache.studies.processes import Child, Claim, ProcessResult

_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Work:
    """A need, a teacher's row, or a cell.

    Attributes:
        key: unique; names its lock and log files.
        what: its name in messages.
        is_done: returns whether it is done already.
        after: keys of the work that must be done before.
        command: returns the command line that does it; None if `finish` does everything.
        finish: records the result of the process, and returns a text for the log.
        fail: records the error message if it failed, or if work that it needs failed.
    """

    key: str
    what: str
    is_done: Callable[[], bool]
    after: tuple[str, ...]
    command: Callable[[], list[str]] | None
    finish: Callable[[ProcessResult | None], str]
    fail: Callable[[str], None]


class Runner:
    """Runs pieces of work in order.

    Args:
        work: the pieces; each stands after those that it needs.
        folder: folder of locks and logs.
        jobs: maximum number of processes at once.
        deadline: Unix time at which all processes are stopped; None: no deadline.
    """

    def __init__(
        self, work: Sequence[Work], folder: Path, *, jobs: int, deadline: float | None
    ) -> None:
        self._work = {piece.key: piece for piece in work}
        self._folder = folder
        self._jobs = jobs
        self._deadline = deadline
        self._running: dict[str, Child] = {}
        self._done: set[str] = set()
        self._failed: dict[str, str] = {}

    def run(self) -> dict[str, Any]:
        """Run until everything is done or failed, or the deadline has come.

        Returns:
            `done` (keys), `failed` (key -> message), and `stopped`: whether the deadline came
            first.

        Raises:
            TrainingError: if the disk is full.
        """
        try:
            while True:
                if self._deadline is not None and time.time() >= self._deadline:
                    return self._result(stopped=True)
                progressed = self._collect() or self._start_some()
                if not progressed:
                    if not self._running and not self._waiting():
                        return self._result(stopped=False)
                    time.sleep(_POLL_SECONDS)
        finally:
            # First kill all: a second Ctrl-C, while this waits, must not leave any behind.
            for child in self._running.values():
                child.kill()
            for child in self._running.values():
                child.wait()

    def _result(self, *, stopped: bool) -> dict[str, Any]:
        return {"done": sorted(self._done), "failed": dict(self._failed), "stopped": stopped}

    def _waiting(self) -> list[Work]:
        """Return the work that is neither done, failed nor running, in order."""
        closed = self._done | self._failed.keys() | self._running.keys()
        return [piece for key, piece in self._work.items() if key not in closed]

    def _collect(self) -> bool:
        """Record the processes that have ended; return whether any has."""
        ended = {key: found for key, child in self._running.items() if (found := child.poll())}
        for key, found in ended.items():
            piece, child = self._work[key], self._running.pop(key)
            try:
                if found.is_disk_full:
                    raise TrainingError(
                        f"{piece.what}: {found.error}. Free some space and run the same command "
                        "again"
                    )
                if found.error is None:
                    self._finish(piece, found)
                else:
                    self._fail(piece, found.error)
            finally:
                child.claim.release()
        return bool(ended)

    def _start_some(self) -> bool:
        """Start the first piece that can start, or fail one; return whether either happened."""
        for piece in self._waiting():
            needs_failed = [key for key in piece.after if key in self._failed]
            if needs_failed:
                need = self._work[needs_failed[0]]
                self._fail(piece, f"{need.what} could not be made: {self._failed[need.key]}")
                return True
            if any(key not in self._done for key in piece.after):
                continue
            if len(self._running) >= self._jobs and piece.command is not None:
                continue
            claim = Claim.take(self._folder / "locks" / f"{piece.key}.lock")
            if claim is None:  # another process is doing it
                continue
            if self._begin(piece, claim):
                return True
        return False

    def _begin(self, piece: Work, claim: Claim) -> bool:
        if piece.is_done():  # perhaps another process has done it meanwhile
            claim.release()
            self._done.add(piece.key)
            return True
        if piece.command is None:
            self._finish(piece, None)
            claim.release()
            return True
        logger.info("%s", piece.what)
        self._running[piece.key] = Child(piece.command(), self._folder / "logs", piece.key, claim)
        return True

    def _finish(self, piece: Work, ended: ProcessResult | None) -> None:
        text = piece.finish(ended)
        self._done.add(piece.key)
        if text:
            left = sum(1 for other in self._waiting() if other.command is not None)
            logger.info("%s: %s; %d left", piece.what, text, left)

    def _fail(self, piece: Work, message: str) -> None:
        logger.warning("%s failed: %s", piece.what, message)
        self._failed[piece.key] = message
        piece.fail(message)
