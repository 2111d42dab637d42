"""The runner: makes what cells need, once, and trains cell by cell, several at a time.

Work is a list in order of priority. Whenever there is room, the first piece starts that is not
made, whose needs are there, and that no other process is at. So parts of a study and several
runners on one workspace share what they need, and wait for each other only where they must.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcache.errors import TrainingError
from kdcache.progress import logger
from kdcache.studies.processes import Child, Claim, Ended

_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Work:
    """A need, a teacher's row, or a cell.

    Attributes:
        key: different for each; names its lock and its messages.
        what: what messages call it.
        is_done: whether nothing is left to do.
        after: keys of the work that comes before.
        command: of the process that does it; None where `finish` does it all.
        finish: what is recorded when the process is done; returns what is said of it.
        fail: what is recorded where it, or what it needs, failed with a message.
    """

    key: str
    what: str
    is_done: Callable[[], bool]
    after: tuple[str, ...]
    command: Callable[[], list[str]] | None
    finish: Callable[[Ended | None], str]
    fail: Callable[[str], None]


class Runner:
    """Does work in order.

    Args:
        work: each after what it needs.
        folder: of locks and messages.
        jobs: most processes at once.
        deadline: seconds since the epoch at which everything stops; None for no end.
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
        """Do all that can be done.

        Returns:
            `done` and `failed` (key -> message) of this call, and `stopped`: whether the deadline
            came first.

        Raises:
            TrainingError: if the disk is full.
        """
        try:
            while True:
                if self._deadline is not None and time.time() >= self._deadline:
                    return self._result(stopped=True)
                progressed = self._collect() or self._start_some()
                if not progressed:
                    if not self._running and not self._open():
                        return self._result(stopped=False)
                    time.sleep(_POLL_SECONDS)
        finally:
            for child in self._running.values():
                child.stop()

    def _result(self, *, stopped: bool) -> dict[str, Any]:
        return {"done": sorted(self._done), "failed": dict(self._failed), "stopped": stopped}

    def _open(self) -> list[Work]:
        """Return what is neither done, nor failed, nor running, in order."""
        closed = self._done | self._failed.keys() | self._running.keys()
        return [piece for key, piece in self._work.items() if key not in closed]

    def _collect(self) -> bool:
        """Record the processes that have ended; return whether there were any."""
        ended = {key: found for key, child in self._running.items() if (found := child.poll())}
        for key, found in ended.items():
            piece, child = self._work[key], self._running.pop(key)
            try:
                if found.is_disk_full:
                    raise TrainingError(
                        f"{piece.what}: {found.error}. Make space, and run the same command again"
                    )
                if found.error is None:
                    self._finish(piece, found)
                else:
                    self._fail(piece, found.error)
            finally:
                child.claim.release()
        return bool(ended)

    def _start_some(self) -> bool:
        """Start the first piece that can start, or close one; return whether there was one."""
        for piece in self._open():
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
            if claim is None:  # another process is at it
                continue
            if self._begin(piece, claim):
                return True
        return False

    def _begin(self, piece: Work, claim: Claim) -> bool:
        if piece.is_done():  # before, or by another process meanwhile
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

    def _finish(self, piece: Work, ended: Ended | None) -> None:
        said = piece.finish(ended)
        self._done.add(piece.key)
        if said:
            left = sum(1 for other in self._open() if other.command is not None)
            logger.info("%s: %s; %d left", piece.what, said, left)

    def _fail(self, piece: Work, message: str) -> None:
        logger.warning("%s failed: %s", piece.what, message)
        self._failed[piece.key] = message
        piece.fail(message)
