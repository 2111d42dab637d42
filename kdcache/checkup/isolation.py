"""A group of checks in a process of its own, which may crash or hang without taking doctor along.

A broken library may end the process that loads it (a missing processor instruction, a damaged file)
or print to stdout and stderr what it likes. Only findings come back from here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from kdcache.checkup.finding import Finding, error, reason

TIMEOUT_SECONDS = 600.0
"""Of one group. On two slow cores the decoder compiles for a minute when it runs first."""


def findings_of(
    function: str, workspace: Path, title: str, remedy: str, *, timeout: float = TIMEOUT_SECONDS
) -> Iterator[Finding]:
    """Run a group of checks in a new process, and yield what it finds.

    Args:
        function: `module:name` of `function(workspace) -> Iterable[Finding]`.
        workspace: absolute.
        title: names the finding where the process breaks down.
        remedy: of that finding.
        timeout: seconds.
    """
    # The child imports from where this process does, and not from the folder it happens to be in.
    path = os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)
    command = [sys.executable, "-P", "-m", __name__, function, str(workspace)]
    try:
        done = subprocess.run(  # noqa: S603  (this interpreter, and a module of ours)
            command,
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as expired:
        yield from _parsed(expired.stdout)
        yield error(title, f"no answer after {timeout:,.0f} seconds", remedy)
        return
    except OSError as failure:  # no process can be started
        yield error(title, f"no process can be started: {reason(failure)}", remedy)
        return
    yield from _parsed(done.stdout)
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        last = f", its last words were: {words[-1].strip()}" if words else ""
        yield error(title, f"the process ended with {_ending(done.returncode)}{last}", remedy)


def main(function: str, workspace: str) -> None:
    """Print each finding as one line of JSON, and nothing else, on stdout.

    A fault that no check foresees ends this process with a traceback, for the parent to read.
    """
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print
    module, _, name = function.partition(":")
    findings: Iterable[Finding] = getattr(import_module(module), name)(Path(workspace))
    for finding in findings:
        results.write(json.dumps(asdict(finding)) + "\n")
        results.flush()


def _parsed(output: bytes | None) -> Iterator[Finding]:
    for line in (output or b"").splitlines(keepends=True):
        if line.endswith(b"\n"):  # else the process ended while it was writing
            yield Finding(**json.loads(line))


def _ending(status: int) -> str:
    if status > 0:
        return f"status {status}"
    return f"signal {-status} ({signal.strsignal(-status)})"


if __name__ == "__main__":
    main(*sys.argv[1:])
