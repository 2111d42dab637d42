"""Run a group of checks in its own process, so that a crash or hang does not stop `doctor`.

A broken library may kill the process that loads it (a missing processor instruction, a damaged
file) or print anything to stdout and stderr. The parent process receives findings only.
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
"""Limit for one group. On two slow cores, the decoder's first compilation takes a minute."""


def findings_of(
    function: str, workspace: Path, title: str, remedy: str, *, timeout: float = TIMEOUT_SECONDS
) -> Iterator[Finding]:
    """Run a group of checks in a new process, and yield its findings.

    Args:
        function: `module:name` of `function(workspace) -> Iterable[Finding]`.
        workspace: absolute path.
        title: name of the finding that is yielded if the process itself fails.
        remedy: remedy of that finding.
        timeout: in seconds.
    """
    # The child gets this process's sys.path, and not the current folder (-P).
    path = os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)
    command = [sys.executable, "-P", "-m", __name__, function, str(workspace)]
    try:
        done = subprocess.run(  # noqa: S603  (this interpreter and this module)
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
    except OSError as failure:
        yield error(title, f"no process can be started: {reason(failure)}", remedy)
        return
    yield from _parsed(done.stdout)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        last = f", its last message was: {lines[-1].strip()}" if lines else ""
        yield error(title, f"the process ended with {_ending(done.returncode)}{last}", remedy)


def main(function: str, workspace: str) -> None:
    """Print each finding as one line of JSON, and nothing else, on stdout.

    An exception that no check catches ends this process with a traceback, which the parent reads.
    """
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries that print to stdout print to stderr instead
    module, _, name = function.partition(":")
    findings: Iterable[Finding] = getattr(import_module(module), name)(Path(workspace))
    for finding in findings:
        results.write(json.dumps(asdict(finding)) + "\n")
        results.flush()


def _parsed(output: bytes | None) -> Iterator[Finding]:
    for line in (output or b"").splitlines(keepends=True):
        if line.endswith(b"\n"):  # otherwise the process ended in the middle of a line
            yield Finding(**json.loads(line))


def _ending(status: int) -> str:
    if status > 0:
        return f"status {status}"
    return f"signal {-status} ({signal.strsignal(-status)})"


if __name__ == "__main__":
    main(*sys.argv[1:])
