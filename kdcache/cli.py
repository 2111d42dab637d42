"""The command line: options in, one library call, the result out.

Results go to stdout, everything else to stderr. Exit status: 0 done, 1 could not be done, 2 asked
wrongly. Heavy libraries load inside the command that needs them, so `--help` is instant.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from cyclopts import App, CycloptsError

from kdcache import __version__
from kdcache.errors import ConfigError, KDCacheError
from kdcache.options import (
    BuildLogitsOptions,
    CommonOptions,
    ExportOptions,
    MergeOptions,
    PackOptions,
    SelectOptions,
    TrainOptions,
    TrainTeacherOptions,
    VerifyOptions,
)
from kdcache.progress import logger

COMMANDS: dict[str, tuple[type[CommonOptions], str]] = {
    "pack": (PackOptions, "kdcache.data.pack:pack"),
    "train-teacher": (TrainTeacherOptions, "kdcache.training.train_teacher:train_teacher"),
    "build-logits": (BuildLogitsOptions, "kdcache.store.build:build_logits"),
    "select": (SelectOptions, "kdcache.selection.select:select"),
    "train": (TrainOptions, "kdcache.training.train:train"),
    "verify": (VerifyOptions, "kdcache.store.verify:verify"),
    "merge": (MergeOptions, "kdcache.store.merge:merge"),
    "export": (ExportOptions, "kdcache.store.export:export"),
}
"""Command -> its options and the function that does it, in the order of the walk."""

app = App(
    name="kdcache",
    help="Run the teacher once; distil students from its cached logits on pruned data.",
    version=__version__,
    result_action="return_value",
)
for _number, (_name, (_options, _)) in enumerate(COMMANDS.items()):
    app.command(_options, name=_name, sort_key=_number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    try:
        options = app(
            sys.argv[1:] if arguments is None else list(arguments),
            exit_on_error=False,
            print_error=False,
        )
    except (CycloptsError, ConfigError) as error:
        return _complain(error, 2)
    if options is None:  # --help and --version have printed
        return 0
    _set_up_messages(quiet=options.quiet)
    try:
        result = _function_for(options)(options)
    except ConfigError as error:
        return _complain(error, 2)
    except (KDCacheError, OSError) as error:
        return _complain(error, 1)
    except KeyboardInterrupt:
        return _complain("interrupted; run the same command again to continue", 1)
    if os.environ.get("RANK", "0") == "0":  # of several processes of torchrun one speaks
        sys.stdout.write((json.dumps(result) if options.json else _summary(result)) + "\n")
    return 0


def _function_for(options: CommonOptions) -> Callable[[CommonOptions], dict[str, Any]]:
    home = next(home for kind, home in COMMANDS.values() if kind is type(options))
    module, _, name = home.partition(":")
    function: Callable[[CommonOptions], dict[str, Any]] = getattr(import_module(module), name)
    return function


def _set_up_messages(*, quiet: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    logger.propagate = False


def _complain(error: object, status: int) -> int:
    message = " ".join(str(error).split())
    sys.stderr.write(f"kdcache: {message}\n")
    return status


def _summary(result: dict[str, Any]) -> str:
    """Return a result for people: one line for each key."""
    lines = []
    for key, value in result.items():
        if isinstance(value, dict):
            shown = ", ".join(f"{name} {_readable(item)}" for name, item in value.items())
        else:
            shown = _readable(value)
        lines.append(f"{key.replace('_', ' '):<20} {shown}")
    return "\n".join(lines)


def _readable(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.2f}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)
