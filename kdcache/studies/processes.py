"""Processes of a study: each uses one thread, may be killed at any time, and is measured.

A process inherits the lock of its work from the runner. So if only the runner is killed, the next
runner does not start work that a process is still doing.
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
    """A lock on one piece of work. It is released when all processes that hold it have ended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held = ExitStack()
        self.descriptor = -1

    @classmethod
    def take(cls, path: Path) -> Claim | None:
        """Take the lock, or return None at once if another process holds it."""
        claim = cls(path)
        try:
            claim.descriptor = claim._held.enter_context(file_lock(path, purpose="part of a study"))
        except KDCacheError:
            return None
        return claim

    def release(self) -> None:
        """Release the lock in this process."""
        self._held.close()


@dataclass(frozen=True)
class ProcessResult:
    """The result of a process."""

    status: int
    """Exit status; 0 means success, and -N that signal N killed the process."""
    output: str
    """The text of stdout."""
    error: str | None
    """The last line of stderr; None after success."""
    processor_seconds: float
    wall_seconds: float
    was_alone: bool
    """True if other processes used almost no processor time meanwhile; see `BusySeconds`."""

    @property
    def is_disk_full(self) -> bool:
        """True if the process failed because the disk is full."""
        return self.error is not None and "No space left on device" in self.error


@dataclass
class Child:
    """A running process.

    Attributes:
        command: its command line.
        logs: folder of its output, `NAME.out` and `NAME.err`.
        name: NAME of these files.
        claim: the lock of its work, held until the result is recorded.
    """

    command: Sequence[str]
    logs: Path
    name: str
    claim: Claim
    _process: subprocess.Popen[bytes] = field(init=False)
    _started: float = field(init=False)
    _busy: BusySeconds = field(init=False)

    def __post_init__(self) -> None:
        """Start the process."""
        self.logs.mkdir(parents=True, exist_ok=True)
        self._busy = BusySeconds.now()
        self._started = time.perf_counter()
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = self._start(out, err)

    def poll(self) -> ProcessResult | None:
        """Return the result; None while the process runs."""
        pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
        return None if pid == 0 else self._result(status, usage.ru_utime + usage.ru_stime)

    def kill(self) -> None:
        """Kill the process, if it still runs; its work resumes at the last checkpoint."""
        self._process.kill()

    def wait(self) -> None:
        """Wait for the end of a killed process, and release its lock."""
        self._process.wait()
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

    def _result(self, wait_status: int, processor_seconds: float) -> ProcessResult:
        wall = time.perf_counter() - self._started
        status = os.waitstatus_to_exitcode(wait_status)
        self._process.returncode = (
            status  # os.wait4 has reaped the process, so Popen does not know its status
        )
        return ProcessResult(
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
        messages = [line.strip() for line in lines if line.strip()]
        return (
            messages[-1].removeprefix("kdcache: ") if messages else f"it ended with status {status}"
        )

    @property
    def _out(self) -> Path:
        return self.logs / f"{self.name}.out"

    @property
    def _err(self) -> Path:
        return self.logs / f"{self.name}.err"
