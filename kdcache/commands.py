"""Every command: its options, and the function that does it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from cyclopts import App

from kdcache import __version__
from kdcache.errors import ConfigError
from kdcache.options import (
    BuildLogitsOptions,
    CommonOptions,
    EvaluateOptions,
    ExportOptions,
    MergeOptions,
    PackOptions,
    RunOptions,
    SelectOptions,
    ShowOptions,
    StatusOptions,
    TrainOptions,
    TrainTeacherOptions,
    VerifyOptions,
)

COMMANDS: dict[str, tuple[type[CommonOptions], str]] = {
    "pack": (PackOptions, "kdcache.data.pack:pack"),
    "train-teacher": (TrainTeacherOptions, "kdcache.training.train_teacher:train_teacher"),
    "build-logits": (BuildLogitsOptions, "kdcache.store.build:build_logits"),
    "select": (SelectOptions, "kdcache.selection.select:select"),
    "train": (TrainOptions, "kdcache.training.train:train"),
    "evaluate": (EvaluateOptions, "kdcache.training.evaluate:evaluate"),
    "verify": (VerifyOptions, "kdcache.store.verify:verify"),
    "merge": (MergeOptions, "kdcache.store.merge:merge"),
    "export": (ExportOptions, "kdcache.store.export:export"),
    "show": (ShowOptions, "kdcache.overview.cards:show"),
    "run": (RunOptions, "kdcache.recipes.run:run"),
}
"""Command -> its options and the function that does it, in the order of the walk."""

WITHOUT_COMMAND = (StatusOptions, "kdcache.overview.status:status")

app = App(
    name="kdcache",
    help="Run the teacher once; distil students from its cached logits on pruned data.",
    version=__version__,
    result_action="return_value",
)
for _number, (_name, (_options, _)) in enumerate(COMMANDS.items()):
    app.command(_options, name=_name, sort_key=_number)
app.default(WITHOUT_COMMAND[0])


def parse(arguments: Sequence[str]) -> CommonOptions | None:
    """Return the options of a command line; None where --help or --version have printed.

    Raises:
        ConfigError: if there is no such command, or an option is outside its range.
        CycloptsError: if the words are no options of the command.
    """
    _require_command(arguments)
    options: CommonOptions | None = app(list(arguments), exit_on_error=False, print_error=False)
    return options


def function_for(options: CommonOptions) -> Callable[[CommonOptions], dict[str, Any]]:
    """Return what does a command, imported now."""
    homes = (WITHOUT_COMMAND, *COMMANDS.values())
    home = next(home for kind, home in homes if kind is type(options))
    module, _, name = home.partition(":")
    function: Callable[[CommonOptions], dict[str, Any]] = getattr(import_module(module), name)
    return function


def _require_command(arguments: Sequence[str]) -> None:
    """Check the first word; without it cyclopts would take it for an option's value."""
    word = arguments[0] if arguments else "--"
    if not word.startswith("-") and word not in COMMANDS:
        near = get_close_matches(word, COMMANDS, n=1)
        raise ConfigError(
            f"{word} is no command, expected one of {', '.join(COMMANDS)}"
            + (f". Did you mean {near[0]}?" if near else "")
        )
