"""Processes of a study: each one thread, killed without harm, measured when it ends.

A process holds the lock of what it makes, together with the runner. So where the runner alone is
killed, the next runner does not start the same work beside a process that is still at it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from kdcache.errors import KDCacheError
from kdcache.locks import file_lock
from kdcache.studies.provenance import BusySeconds

_ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
}


class Claim:
    """A lock on one piece of work; None of `take` where another process is at it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held = ExitStack()
        self.descriptor = -1

    @classmethod
    def take(cls, path: Path) -> Claim | None:
        """Lock, or return None at once where another process holds the lock."""
        claim = cls(path)
        try:
            claim.descriptor = claim._held.enter_context(file_lock(path, purpose="part of a study"))
        except KDCacheError:
            return None
        return claim

    def release(self) -> None:
        """Give the lock up."""
        self._held.close()


@dataclass(frozen=True)
class Ended:
    """How a process came to its end."""

    status: int
    """0: done; negative: killed by this signal."""
    output: str
    """What it wrote to stdout."""
    error: str | None
    """Its last message, in one line; None where it is done."""
    processor_seconds: float
    wall_seconds: float
    was_alone: bool
    """Whether nothing else took noteworthy processor time meanwhile."""

    @property
    def is_disk_full(self) -> bool:
        """Whether the disk, not the work, was at fault."""
        return self.error is not None and "No space left on device" in self.error


@dataclass
class Child:
    """A running process.

    Attributes:
        command: its words.
        logs: folder that receives `NAME.out` and `NAME.err`.
        name: of these files.
        claim: on its work, held until it has ended and was recorded.
    """

    command: Sequence[str]
    logs: Path
    name: str
    claim: Claim
    _process: subprocess.Popen[bytes] = field(init=False)
    _started: float = field(init=False)
    _busy: BusySeconds = field(init=False)

    def __post_init__(self) -> None:
        """Start it."""
        self.logs.mkdir(parents=True, exist_ok=True)
        self._busy = BusySeconds.now()
        self._started = time.perf_counter()
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = self._start(out, err)

    def poll(self) -> Ended | None:
        """Return how it ended; None while it runs."""
        pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
        return None if pid == 0 else self._ended(status, usage.ru_utime + usage.ru_stime)

    def stop(self) -> None:
        """Kill it and wait for its end; what it makes goes on from its last checkpoint."""
        self._process.send_signal(signal.SIGKILL)
        _, status, _ = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self.claim.release()

    def _start(self, out: IO[bytes], err: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603  (our own command line)
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=os.environ | _ONE_THREAD,
            pass_fds=(self.claim.descriptor,),
        )

    def _ended(self, wait_status: int, processor_seconds: float) -> Ended:
        wall = time.perf_counter() - self._started
        status = os.waitstatus_to_exitcode(wait_status)
        self._process.returncode = status  # Popen has not waited for it itself
        return Ended(
            status=status,
            output=self._out.read_text(encoding="utf-8", errors="replace"),
            error=self._error(status),
            processor_seconds=processor_seconds,
            wall_seconds=wall,
            was_alone=BusySeconds.now().was_alone(
                since=self._busy, own_seconds=processor_seconds, wall_seconds=wall
            ),
        )

    def _error(self, status: int) -> str | None:
        if status == 0:
            return None
        if status < 0:
            return f"it was killed by {signal.Signals(-status).name}"
        lines = self._err.read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line.strip() for line in lines if line.strip()]
        return said[-1].removeprefix("kdcache: ") if said else f"it ended with status {status}"

    @property
    def _out(self) -> Path:
        return self.logs / f"{self.name}.out"

    @property
    def _err(self) -> Path:
        return self.logs / f"{self.name}.err"
