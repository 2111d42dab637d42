"""A cell of a grid: one student with all its settings, and its identity.

A setting that a cell does not use is None. So two combinations that train the same student are one
cell.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from kdcache.errors import ConfigError
from kdcache.options import PruningOptions, SelectOptions, TrainOptions
from kdcache.selection.methods import METHODS, owners_of_options
from kdcache.studies.training_length import TrainingLength

LIVE = "live"
"""Value of `views` for a live teacher, which runs in each training step."""

TYPES: dict[str, tuple[type, ...]] = {
    "data": (str,),
    "label_noise": (float, int),
    "tune_fraction": (float, int),
    "student": (str,),
    "method": (str,),
    "keep": (float, int),
    "kd": (bool,),
    "loss": (str,),
    "alpha": (float, int, str),
    "temperature": (float, int),
    "views": (int, str),
    "reshape": (bool,),
    "teacher": (str,),
    "score_teacher": (str,),
    "recipe": (str,),
    "batch_size": (int,),
    "evaluations": (int,),
    "seed": (int,),
}
"""Setting -> the types that its value may have."""

DEFAULTS: dict[str, Any] = {
    "label_noise": 0.0,
    "student": "resnet8",
    "method": "random",
    "keep": 1.0,
    "kd": True,
    "loss": "kd",
    "alpha": 0.9,
    "temperature": 4.0,
    "views": 8,
    "reshape": False,
    "recipe": "20 epochs",
    "batch_size": 128,
    "evaluations": 3,
    "seed": 0,
}
"""The study's own defaults. They are part of every cell's id, so they stay when the default of an
option changes."""

SELECT_OPTIONS = ("score", "balance", "min_per_class", "start", "cut", "peak", "concentration")
"""Options of `kdcache select` that a grid may set."""

_METHOD_OF_OPTION = {
    option: method for method, options in owners_of_options().items() for option in options
}

_KD_SETTINGS = (
    "loss",
    "alpha",
    "temperature",
    "views",
    "reshape",
    "teacher",
    "standardise",
    "pixels",
)

_RUNNER_OPTIONS = frozenset(
    {"workspace", "json", "quiet", "subset", "store", "model", "live_teacher", "arch", "seeds"}
    | {"out", "resume", "epochs", "steps", "eval_every", "num_workers", "tensorboard", "device"}
    | {"teacher_mean", "teacher_std", "stem", "teacher_output"}
)

TRAIN_OPTIONS = tuple(
    field.name for field in fields(TrainOptions) if field.name not in _RUNNER_OPTIONS | TYPES.keys()
)
"""Options of `kdcache train` that a grid may set, beside those in `TYPES`."""

SETTINGS = (*TYPES, *SELECT_OPTIONS, *TRAIN_OPTIONS)
"""Every name that a grid may set."""


@dataclass(frozen=True)
class Cell:
    """One student.

    Attributes:
        settings: setting -> value; None for a setting that the cell does not use.
        teachers: the definition of each teacher that the settings name, as JSON content.
        block: name of the first block that contains the cell.
    """

    settings: Mapping[str, Any]
    teachers: Mapping[str, Mapping[str, Any]]
    block: str

    @property
    def id(self) -> str:
        """The first 16 hex digits of the sha256 of the settings.

        A teacher enters by its definition, not by its name. Settings that are None are left out, so
        a later version can add settings without changing the ids of existing cells.
        """
        content = {name: value for name, value in self.settings.items() if value is not None}
        for role in ("teacher", "score_teacher"):
            if role in content:
                content[role] = dict(self.teachers[content[role]])
        text = json.dumps(content, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """The name of the cell in messages."""
        shown = self.settings
        words = [shown["data"], shown["method"]]
        words += [f"keep {shown['keep']:g}"] if shown["keep"] < 1 else []
        if shown["kd"]:
            words += [f"KD alpha {shown['alpha']}", f"V {shown['views']}", shown["teacher"]]
            words += ["reshaped"] if shown["reshape"] else []
        else:
            words.append("no KD")
        words += [f"noise {shown['label_noise']:g}"] if shown["label_noise"] else []
        return ", ".join([*words, shown["student"], shown["recipe"], f"seed {shown['seed']}"])

    @property
    def is_tuning(self) -> bool:
        """True if it is evaluated on a part of the training set, to choose settings."""
        return self.settings["tune_fraction"] is not None


def make_cell(
    given: Mapping[str, Any], teachers: Mapping[str, Mapping[str, Any]], *, block: str
) -> Cell:
    """Return a cell; settings that are not given get their defaults.

    Args:
        given: setting -> value; the names are those of SETTINGS.
        teachers: name -> definition, for every teacher of the grid.
        block: name of the block that contains the cell.

    Raises:
        ConfigError: if a setting is unknown, has the wrong type or is out of range, or if the data
            or a teacher is missing.
    """
    settings: dict[str, Any] = dict.fromkeys(SETTINGS) | DEFAULTS | dict(given)
    for name, value in settings.items():
        _require_type(name, value)
    if settings["data"] is None:
        raise ConfigError("data is not given, expected the name of a data set, such as digits")
    _require_range(settings)
    settings["recipe"] = str(TrainingLength.parse(settings["recipe"]))
    if settings["method"] not in METHODS:
        raise ConfigError(f"method is {settings['method']!r}, expected one of {', '.join(METHODS)}")
    pruning = PruningOptions()
    object.__setattr__(pruning, "method", settings["method"])
    if settings["keep"] == 1:
        settings["method"] = "all"
    reads_scores = settings["method"] != "all" and pruning.reads_scores
    is_selected_with = dict.fromkeys(SELECT_OPTIONS, settings["method"] != "all")
    is_selected_with["score"] = reads_scores
    is_selected_with |= {
        name: settings["method"] == method for name, method in _METHOD_OF_OPTION.items()
    }
    if reads_scores and settings["score"] is None:
        settings["score"] = SelectOptions().score
    settings["score_teacher"] = settings["score_teacher"] or settings["teacher"]
    unused = [name for name, is_used in is_selected_with.items() if not is_used]
    unused += [] if settings["kd"] else _KD_SETTINGS
    # `random` reads only labels from a store, and these do not depend on the teacher. All other
    # methods do: `class-adaptive` reads which predictions are correct, the rest read scores.
    unused += ["score_teacher"] if settings["method"] in ("all", "random") else []
    for name in unused:
        settings[name] = None
    for role in ("teacher", "score_teacher"):
        is_needed = settings["kd"] if role == "teacher" else role not in unused
        if is_needed and settings[role] not in teachers:
            raise ConfigError(
                f"{role} is {settings[role] or 'not given'}, expected one of the grid's teachers: "
                f"{', '.join(teachers) or 'none is defined'}. Define it with [teachers.NAME]"
            )
    for name, value in settings.items():
        if isinstance(value, int) and not isinstance(value, bool) and float in TYPES.get(name, ()):
            settings[name] = float(value)
    used = {settings[role] for role in ("teacher", "score_teacher")} - {None}
    return Cell(settings, {name: teachers[name] for name in sorted(used)}, block)


def _require_type(name: str, value: Any) -> None:
    if name not in SETTINGS:
        raise ConfigError(f"{name} is not a setting, expected one of {known_settings()}")
    if value is None or name not in TYPES:
        return
    kinds = TYPES[name]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise ConfigError(
            f"{name} is {value!r}, expected {' or '.join(kind.__name__ for kind in kinds)}"
        )


def _require_range(settings: Mapping[str, Any]) -> None:
    rules: dict[str, tuple[bool, str]] = {
        "keep": (0 < settings["keep"] <= 1, "a number in (0, 1]"),
        "label_noise": (0 <= settings["label_noise"] < 1, "a fraction in [0, 1)"),
        "batch_size": (settings["batch_size"] > 0, "a number above 0"),
        "evaluations": (settings["evaluations"] > 0, "a number above 0"),
        "seed": (settings["seed"] >= 0, "a number >= 0"),
        "views": (
            settings["views"] == LIVE
            or (isinstance(settings["views"], int) and settings["views"] >= 0),
            f"a number >= 0, or {LIVE!r}",
        ),
        "tune_fraction": (
            settings["tune_fraction"] is None or 0 < settings["tune_fraction"] < 1,
            "a fraction in (0, 1)",
        ),
    }
    for name, (holds, rule) in rules.items():
        if not holds:
            raise ConfigError(f"{name} is {settings[name]!r}, expected {rule}")


def known_settings() -> str:
    """Return the names of all settings, for error messages."""
    return ", ".join(SETTINGS)
