"""Lock a file; the kernel releases the lock when its holder ends, even by a signal."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdcache.errors import KDCacheError


@contextmanager
def file_lock(
    path: Path, *, purpose: str, shared: bool = False, wait: bool = False
) -> Iterator[int]:
    """Hold the lock on the file `path`; the kernel releases it when this process ends.

    Yields its file descriptor: a child process that inherits it holds the lock too.

    Args:
        path: path of the lock file; it is created if missing.
        purpose: name of the work, for the error message of another process.
        shared: share the lock with other processes that share it.
        wait: wait until the lock is free, instead of raising.

    Raises:
        KDCacheError: if another process holds it; names that process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process or thread"
            raise KDCacheError(
                f"{path} is held by {holder}, expected one {purpose} at a time. "
                "Wait for it to end, or end it."
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} ({purpose})")
        file.flush()
        # The file stays: unlinking it would let two processes lock two files of one name.
        yield file.fileno()
