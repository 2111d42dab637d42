"""List the commands, with the options and the function of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, fields, make_dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import (
    Annotated,
    Any,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from cyclopts import App, CycloptsError, Parameter, Token

from kdcache import __version__
from kdcache.errors import ConfigError
from kdcache.library import field_docs
from kdcache.options import (
    DEFAULT_WORKSPACE,
    WORKSPACE_VARIABLE,
    BuildLogitsOptions,
    CommonOptions,
    DoctorOptions,
    EvaluateOptions,
    ExportOptions,
    MergeOptions,
    OutputOptions,
    PackOptions,
    RunOptions,
    ScoreOptions,
    SelectOptions,
    ShowOptions,
    StatusOptions,
    StudyOptions,
    TrainOptions,
    TrainTeacherOptions,
    VerifyOptions,
)
from kdcache.processes import srun_tasks, torchrun_world
from kdcache.progress import logger
from kdcache.results import Result

_T = TypeVar("_T")

COMMANDS: dict[str, tuple[type[CommonOptions], str]] = {
    "pack": (PackOptions, "kdcache.data.pack:pack"),
    "train-teacher": (TrainTeacherOptions, "kdcache.training.train_teacher:train_teacher"),
    "build-logits": (BuildLogitsOptions, "kdcache.store.build.build:build_logits"),
    "score": (ScoreOptions, "kdcache.selection.score:score"),
    "select": (SelectOptions, "kdcache.selection.select:select"),
    "train": (TrainOptions, "kdcache.training.train:train"),
    "evaluate": (EvaluateOptions, "kdcache.training.evaluate:evaluate"),
    "verify": (VerifyOptions, "kdcache.store.build.verify:verify"),
    "merge": (MergeOptions, "kdcache.store.upkeep.merge:merge"),
    "export": (ExportOptions, "kdcache.store.upkeep.export:export"),
    "show": (ShowOptions, "kdcache.overview.cards:show"),
    "run": (RunOptions, "kdcache.pipeline_runs.runner:run"),
    "study": (StudyOptions, "kdcache.studies.study:study"),
    "doctor": (DoctorOptions, "kdcache.checkup.doctor:doctor"),
}
"""Command -> (options, function), in the order of the pipeline."""

DEFAULT_COMMAND = (StatusOptions, "kdcache.overview.status:status")

_READ_ONLY = (DoctorOptions, ShowOptions, StatusOptions)
_DISTRIBUTED = (BuildLogitsOptions,)
"""Options of the commands that several processes may run together."""

_OLD_OPTIONS = {("run", "--recipe"): "--pipeline"}
"""(command, old option) -> its present name; the old ones work in this version."""


class CommandLine(NamedTuple):
    """A parsed command line."""

    options: CommonOptions
    """The command's options, as a call from Python gives them."""
    output: OutputOptions


def _as_words(options: type[CommonOptions]) -> type[CommonOptions]:
    """Return the dataclass that cyclopts parses: it adds how to print.

    The workspace comes first in a call from Python, but is never a positional word.
    """
    docs, hints = field_docs(options), get_type_hints(options, include_extras=True)
    changed: list[tuple[str, Any, Any]] = []
    for one in fields(options):
        hint, default = hints[one.name], one.default
        if one.name == "workspace":
            hint = Annotated[
                Path, Parameter(env_var=WORKSPACE_VARIABLE, converter=_convert_workspace)
            ]
            default = DEFAULT_WORKSPACE
        elif (hint := _as_parsed(hint)) == hints[one.name]:
            continue
        is_option = one.kw_only or one.name == "workspace"
        changed.append(
            (
                one.name,
                Annotated[hint, Parameter(help=docs[one.name])],
                field(default=default, kw_only=is_option),
            )
        )
    return make_dataclass(
        options.__name__,
        changed,
        bases=(options, OutputOptions),
        namespace={"__doc__": options.__doc__, "__module__": options.__module__},
        frozen=True,
        kw_only=True,
    )


def _convert_workspace(_: Any, tokens: Sequence[Token]) -> Path:
    """Convert a workspace. An empty one would be the current folder."""
    (token,) = tokens
    if token.value:
        return Path(token.value)
    if token.source == "env":  # an empty variable counts as unset
        return DEFAULT_WORKSPACE
    raise ValueError("it is empty, expected the path of a folder")


def _as_parsed(hint: Any) -> Any:
    """Return the one type that a command line gives, where a call from Python may give several.

    A path stays a text, because it may be a name or a URL. What may be given several times is a
    tuple.
    """
    origin, kinds = get_origin(hint), get_args(hint)
    if origin is Annotated:
        inner, *about = kinds
        return Annotated[(_as_parsed(inner), *about)]
    if origin is Sequence:
        return tuple[(_as_parsed(kinds[0]), ...)]  # type: ignore[misc]
    if origin not in (Union, UnionType):
        return hint
    if sequences := [kind for kind in kinds if get_origin(kind) is Sequence]:
        return _as_parsed(sequences[0])
    return Union[tuple(kind for kind in kinds if kind is not Path)]  # noqa: UP007  (a tuple)


app = App(
    name="kdcache",
    help="Run the teacher once; distil students from its cached logits on pruned data.",
    version=__version__,
    result_action="return_value",
)
for _number, (_name, (_options, _)) in enumerate(COMMANDS.items()):
    app.command(_as_words(_options), name=_name, sort_key=_number)
app.default(_as_words(DEFAULT_COMMAND[0]))


def parse(arguments: Sequence[str]) -> CommandLine | None:
    """Parse a command line; return None if --help or --version has printed.

    Raises:
        ConfigError: if the command does not exist, or an option is outside its range.
        CycloptsError: if an argument is not an option of the command.
    """
    _require_command(arguments)
    _note_old_options(arguments)
    try:
        words = app(list(arguments), exit_on_error=False, print_error=False)
    except CycloptsError:
        command = next((word for word in arguments if word in COMMANDS), None)
        if command is None or not arguments[0].startswith("-"):
            raise
        raise ConfigError(
            f"{arguments[0]} stands before the command, expected it after. "
            f"Run: kdcache {command} {arguments[0]} ..."
        ) from None
    if words is None:
        return None
    kind = next(
        kind for kind, _ in (DEFAULT_COMMAND, *COMMANDS.values()) if isinstance(words, kind)
    )
    return CommandLine(_fields_of(kind, words), _fields_of(OutputOptions, words))


def _fields_of(kind: type[_T], words: object) -> _T:
    """Return the part of a parsed line that belongs to one dataclass."""
    return kind(**{one.name: getattr(words, one.name) for one in fields(kind)})  # type: ignore[arg-type]


def function_for(options: CommonOptions) -> Callable[[CommonOptions], Result]:
    """Import and return the function of a command."""
    entries = (DEFAULT_COMMAND, *COMMANDS.values())
    target = next(target for kind, target in entries if kind is type(options))
    module, _, name = target.partition(":")
    function: Callable[[CommonOptions], Result] = getattr(import_module(module), name)
    return function


def require_one_process(options: CommonOptions, environment: Mapping[str, str]) -> None:
    """Check that several processes do not repeat the same work.

    Under torchrun the user expects the processes to share the work, but only a build does. Under
    srun the tasks may have different options, such as --seed, so this function only warns.

    Raises:
        ConfigError: if torchrun started several processes and the command cannot share its work.
    """
    if type(options) in _READ_ONLY:
        return
    name = next(name for name, (kind, _) in COMMANDS.items() if kind is type(options))
    if (world := torchrun_world(environment)) is not None:
        if world.world_size > 1 and type(options) not in _DISTRIBUTED:
            raise ConfigError(
                f"WORLD_SIZE is {world.world_size}, expected 1: {name} runs in one process, and "
                f"each of torchrun's would do all of it. Run it alone: kdcache {name}"
            )
        return
    tasks = srun_tasks(environment)
    if tasks > 1 and getattr(options, "part", None) is None:
        logger.warning(
            "srun started %d tasks, and each does all of kdcache %s. %s",
            tasks,
            name,
            f"Give each its part: --part $((SLURM_PROCID + 1))/{tasks}"
            if type(options) in _DISTRIBUTED
            else "Start one (srun --ntasks 1), unless each has other options",
        )


def _note_old_options(arguments: Sequence[str]) -> None:
    for word in arguments[1:]:
        option = word.partition("=")[0]
        if (present := _OLD_OPTIONS.get((arguments[0], option))) is not None:
            logger.warning(
                "%s is now called %s; the old name works in this version", option, present
            )


def _require_command(arguments: Sequence[str]) -> None:
    """Check the first word: cyclopts would take an unknown command for the value of an option."""
    word = arguments[0] if arguments else "--"
    if not word.startswith("-") and word not in COMMANDS:
        near = get_close_matches(word, COMMANDS, n=1)
        raise ConfigError(
            f"{word} is not a command, expected one of {', '.join(COMMANDS)}"
            + (f". Did you mean {near[0]}?" if near else "")
        )
