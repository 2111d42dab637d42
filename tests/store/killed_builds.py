"""Builds that die by SIGKILL: `python -m tests.store.killed_builds POINT... -- ARGUMENTS`.

Each POINT is the end of a path. For each in turn, a process of its own runs the command line with
ARGUMENTS, and kills itself when a file is about to appear under such a path: what was written
under its temporary name is left behind, torn in half. Prints one JSON line for each.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import kdcache.store.build
from kdcache.cli import main


def die_before(point: str) -> None:
    """Kill this process before a file appears under a path that ends so."""

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        # zarr renames, or links where a file must not be there yet.
        if event not in {"os.rename", "os.link"} or not str(arguments[1]).endswith(point):
            return
        partial = Path(str(arguments[0]))
        if partial.is_file():
            os.truncate(partial, partial.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def run_and_die(point: str, arguments: list[str]) -> int:
    """Run the command line in a process that dies at a point; return the signal that ended it."""
    child = os.fork()
    if child == 0:
        die_before(point)
        os._exit(main(arguments))
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


if __name__ == "__main__":
    assert kdcache.store.build  # imported here once, for all children
    split = sys.argv.index("--")
    for place in sys.argv[1:split]:
        ended_by = run_and_die(place, sys.argv[split + 1 :])
        sys.stdout.write(json.dumps({"point": place, "ended by": ended_by}) + "\n")
        sys.stdout.flush()
