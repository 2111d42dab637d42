"""Builds that die by SIGKILL: `python -m tests.store.killed_builds SCENARIOS`.

SCENARIOS is a JSON list of pairs (points, arguments). For each point in turn, a process of its own
runs the command line with the arguments and kills itself: when a file is about to appear under a
path that ends so, or, where the point is a number, right after so many files have appeared. What
was written under the temporary name of the next one is left behind, torn in half. Prints one JSON
line for each.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import redirect_stdout
from pathlib import Path

import kdcache.store.build.build
from kdcache.cli import main


def die_at(point: str | int) -> None:
    """Kill this process before a file appears, see above."""
    appeared = 0

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal appeared
        # A file gets its name by a rename; those of a view that is taken over are links.
        if event not in {"os.rename", "os.link"} or ".zarr/" not in str(arguments[1]):
            return
        appeared += not Path(str(arguments[1])).exists()  # one that is written again is not new
        if appeared <= point if isinstance(point, int) else not str(arguments[1]).endswith(point):
            return
        partial = Path(str(arguments[0]))
        if partial.name.endswith(".partial"):
            os.truncate(partial, partial.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def run_and_die(point: str | int, arguments: list[str]) -> int:
    """Run the command line in a process that dies at a point; return the signal that ended it."""
    child = os.fork()
    if child == 0:
        die_at(point)
        with redirect_stdout(sys.stderr):  # one that lives on says so there
            os._exit(main(arguments))
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


if __name__ == "__main__":
    assert kdcache.store.build.build  # imported here once, for all children
    for points, arguments in json.loads(sys.argv[1]):
        for place in points:
            ended_by = run_and_die(place, arguments)
            sys.stdout.write(json.dumps({"point": place, "ended by": ended_by}) + "\n")
            sys.stdout.flush()
