"""Run one command: parse the options, call one library function, print its result.

The result goes to stdout, everything else to stderr. Exit status: 0 success, 1 failure, 2 usage
error. Heavy libraries load inside the command that needs them, so `--help` is instant.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from cyclopts import CycloptsError

from kdcache.commands import function_for, parse, require_one_process
from kdcache.errors import ConfigError, KDCacheError, shell_line
from kdcache.options import (
    BuildLogitsOptions,
    CommonOptions,
    MergeOptions,
    RunOptions,
    StudyOptions,
    TrainOptions,
    TrainTeacherOptions,
)
from kdcache.processes import torchrun_world
from kdcache.progress import logger, words_for_shell
from kdcache.results import JSON

# Threads of torch, of the reader and of other processes share the cores. By default a torch thread
# that waits for its team spins and occupies a core that the others need: on a busy machine a
# training step is ten times slower. torch reads this variable when it loads; the user's value wins.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    _prepare_streams()
    with words_for_shell():
        return _run(sys.argv[1:] if arguments is None else list(arguments))


def _run(given: list[str]) -> int:
    try:
        line = parse(given)
    except (CycloptsError, ConfigError) as error:
        return _print_error(error, 2)
    if line is None:  # --help or --version has printed
        return 0
    options, output = line
    _configure_logging(quiet=output.quiet)
    try:
        require_one_process(options, os.environ)
        result = function_for(options)(options)
    except ConfigError as error:
        return _print_error(error, 2)
    except (KDCacheError, OSError) as error:
        return _print_error(error, 1)
    except KeyboardInterrupt:
        return _print_error(f"interrupted; {_how_to_continue(options)}", 1)
    if _prints_result(os.environ):
        content = result.to_json()
        text = json.dumps(content) if output.json else _summary(content)
        try:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()
        except OSError as error:
            _silence(sys.stdout)
            if not isinstance(error, BrokenPipeError):  # a reader like `head` has read enough
                return _print_error(f"the result cannot be printed: {error.strerror}", 1)
    return 1 if result.is_failure else 0


def _prepare_streams() -> None:
    """Let any path be printed, and open closed streams on the null device.

    The next file that is opened would otherwise get the number of the closed stream, and C
    libraries would print into it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115  (stays open)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _silence(stream: TextIO) -> None:
    """Let the interpreter's last flush of a stream succeed."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def _how_to_continue(options: CommonOptions) -> str:
    again = "run the same command again"
    match options:
        case TrainOptions(resume=False):
            return f"{again} with --resume to continue"
        case BuildLogitsOptions(overwrite=True):  # --overwrite would delete what was built
            return f"{again} without --overwrite to continue"
        case (
            TrainOptions()
            | BuildLogitsOptions()
            | TrainTeacherOptions(overwrite=False)
            | RunOptions()
            | StudyOptions()
        ):
            return f"{again} to continue"
        case MergeOptions(overwrite=False):
            return f"{again} with --overwrite; it starts over"
    return f"{again}; it starts over"


def _prints_result(environment: Mapping[str, str]) -> bool:
    """Return whether this process prints the result; under torchrun only rank 0 does."""
    world = torchrun_world(environment)
    return world is None or world.rank == 0


def _configure_logging(*, quiet: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    logger.propagate = False


def _print_error(error: BaseException | str, status: int) -> int:
    message = error if isinstance(error, str) else shell_line(error)
    sys.stderr.write(f"kdcache: {message}\n")
    return status


def _summary(result: dict[str, JSON]) -> str:
    """Format a result for people: one line for each key, and one for each record of a dict."""
    lines = []
    for key, value in result.items():
        if isinstance(value, dict) and _holds_records(value):
            for name, item in value.items():
                fields = [
                    part
                    if isinstance(part, str)
                    else f"{about.replace('_', ' ')} {_format_value(part)}"
                    for about, part in item.items()
                    if part is not None
                ]
                lines.append(f"{key.replace('_', ' '):<20} {name}: {', '.join(fields)}")
            continue
        if value and isinstance(value, list) and all(isinstance(item, dict) for item in value):
            continue  # each part was logged when it ended
        if isinstance(value, dict) and value:
            shown = ", ".join(f"{name} {_format_value(item)}" for name, item in value.items())
        else:
            shown = _format_value(value)
        lines.append(f"{key.replace('_', ' '):<20} {shown}")
    return "\n".join(lines)


def _holds_records(value: dict[str, Any]) -> bool:
    return bool(value) and all(isinstance(item, dict) for item in value.values())


def _format_value(value: object) -> str:
    if value is None:
        return "-"
    if value in ({}, []):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_format_value, value))
    if isinstance(value, float):
        return f"{value:,.2f}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)
