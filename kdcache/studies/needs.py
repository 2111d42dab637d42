"""What cells need before they can train: packed data, teachers, stores and subsets.

Each of these is made once. All files are below studies/ in the workspace, where each data set, and
each variant of it with label noise or a tuning split, has its own kdcache workspace:

studies/
  GRID.parquet                 results, unless --results names another file
  data/NAME/                   images with label noise, or with a tuning split
  NAME/                        workspace: betons, teachers, stores, subsets
  NAME/runs/CELL-PACKAGE/      run folder of a cell
  logs/                        stdout and stderr of every process
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcache.options import PruningOptions
from kdcache.pipeline_runs.pipeline import command_words
from kdcache.studies.cells import LIVE, SELECT_OPTIONS, TRAIN_OPTIONS, Cell
from kdcache.studies.training_length import TrainingLength
from kdcache.workspace import Workspace

_THREADS = "--num-workers=1"


@dataclass(frozen=True)
class Need:
    """Something that cells need; one process makes it.

    Attributes:
        key: unique; names its lock and log files.
        what: its name in messages.
        command: returns the command line that makes it.
        is_made: returns whether it exists and is complete.
        after: keys of the needs that must be made before.
    """

    key: str
    what: str
    command: Callable[[], list[str]]
    is_made: Callable[[], bool]
    after: tuple[str, ...]


class Plan:
    """Where the files of a study are, and the commands that make them.

    Args:
        root: the folder studies/ of the workspace.
        sources: name of a data set -> the source that `kdcache pack` reads.
        teachers: name -> definition of each teacher of the grid.
        num_views: number V of augmented views of every store.
    """

    def __init__(
        self,
        root: Path,
        *,
        sources: Mapping[str, str],
        teachers: Mapping[str, Mapping[str, Any]],
        num_views: int,
    ) -> None:
        self.root = root
        self._sources = sources
        self._teachers = teachers
        self._num_views = num_views

    def workspace(self, settings: Mapping[str, Any]) -> Workspace:
        """Return the workspace of a cell's data."""
        return Workspace(self.root / _variant(settings))

    def needs_of_cell(self, cell: Cell) -> list[Need]:
        """Return everything that a cell needs, in an order in which it can be made."""
        settings = cell.settings
        needs = self.needs_of_data(settings)
        if settings["kd"]:
            needs += self.needs_of_teacher(
                settings, settings["teacher"], with_store=settings["views"] != LIVE
            )
        if settings["method"] != "all":
            needs += self.needs_of_teacher(
                settings, self._selection_teacher(settings), with_store=True
            )
            needs.append(self._subset(settings))
        return list({need.key: need for need in needs}.values())

    def needs_of_data(self, settings: Mapping[str, Any]) -> list[Need]:
        """Return the needs that make the packed images of a cell."""
        name = _variant(settings)
        source = self._sources[settings["data"]]
        workspace = self.workspace(settings)
        needs: list[Need] = []
        if settings.get("label_noise") or settings.get("tune_fraction"):
            folder = self.root / "data" / name
            command = [
                *(sys.executable, "-m", "kdcache.studies.variant", source, str(folder)),
                *(str(settings.get("label_noise") or 0), str(settings.get("tune_fraction") or 0)),
            ]
            needs.append(
                Need(
                    f"{name}.images",
                    f"images of {name}",
                    lambda: command,
                    (folder / "train.parquet").exists,
                    (),
                )
            )
            source = str(folder)
        pack = _kdcache(workspace, ["pack", source, _THREADS])
        manifests = [workspace.beton(split).with_suffix(".json") for split in ("train", "val")]
        needs.append(
            Need(
                f"{name}.pack",
                f"pack of {name}",
                lambda: pack,
                lambda: all(path.exists() for path in manifests),
                tuple(need.key for need in needs),
            )
        )
        return needs

    def needs_of_teacher(
        self, settings: Mapping[str, Any], teacher: str, *, with_store: bool
    ) -> list[Need]:
        """Return the needs that make a teacher, its data before it, and its store after it."""
        workspace = self.workspace(settings)
        before = self.needs_of_data(settings)
        definition = dict(self._teachers[teacher])
        epoch = definition.pop("epoch", None)
        base = self._base_name(definition)
        early = sorted(
            about["epoch"]
            for about in self._teachers.values()
            if "epoch" in about and _without_epoch(about) == definition
        )
        options = {key: value for key, value in definition.items() if key != "model"}
        files = [
            workspace.teacher(name)
            for name in (base, *(f"{base}-epoch{number}" for number in early))
        ]

        def train_command() -> list[str]:
            words = ["train-teacher", f"--model={definition['model']}", f"--name={base}", _THREADS]
            words += command_words(options, "train-teacher")
            words += [f"--save-epochs={','.join(map(str, early))}"] if early else []
            # If the teacher exists but some early weights do not, train it again to make them.
            words += ["--overwrite"] if files[0].exists() else []
            return _kdcache(workspace, words)

        trained = Need(
            f"{workspace.root.name}.teacher.{base}",
            f"teacher {_teacher_text(definition)} on {workspace.root.name}",
            train_command,
            lambda: all(path.exists() for path in files),
            tuple(need.key for need in before),
        )
        needs = [*before, trained]
        if with_store:
            name = base if epoch is None else f"{base}-epoch{epoch}"
            store = workspace.store(name)
            views = range(self._num_views + 1)
            build = _kdcache(
                workspace,
                ["build-logits", f"--teacher={name}", f"--views={self._num_views}", _THREADS],
            )
            needs.append(
                Need(
                    f"{workspace.root.name}.store.{name}",
                    f"store of teacher {teacher} on {workspace.root.name}",
                    lambda: build,
                    lambda: all((store / f"views/{view}/complete").exists() for view in views),
                    (trained.key,),
                )
            )
        return needs

    def teacher_file(self, settings: Mapping[str, Any], teacher: str) -> Path:
        """Return the weights file of a teacher on a cell's data."""
        return self.workspace(settings).teacher(self._teacher_name(teacher))

    def store(self, settings: Mapping[str, Any], teacher: str) -> Path:
        """Return the store of a teacher on a cell's data."""
        return self.workspace(settings).store(self._teacher_name(teacher))

    def subset(self, settings: Mapping[str, Any]) -> Path | None:
        """Return the subset file of a cell; None if it keeps all samples."""
        if settings["method"] == "all":
            return None
        words = [settings["method"], f"{settings['keep']:g}"]
        words += [
            f"{name}{settings[name]}" for name in SELECT_OPTIONS if settings[name] is not None
        ]
        if settings["score_teacher"] is not None:
            words.append(self._teacher_name(settings["score_teacher"]))
        if _draws(settings["method"]):
            words.append(f"s{settings['seed']}")
        return self.workspace(settings).subset("-".join(words))

    def run_folder(self, cell: Cell, package: str) -> Path:
        """Return the run folder of a cell; a version of the package resumes its own runs only."""
        return self.workspace(cell.settings).run(f"{cell.id}-{package[:8]}")

    def train_command(self, cell: Cell, folder: Path, *, samples: int) -> list[str]:
        """Return the command that trains a cell; it resumes a run that was interrupted.

        Args:
            cell: the student.
            folder: its run folder.
            samples: number of samples that the cell keeps.
        """
        return [
            *_kdcache(self.workspace(cell.settings), self.train_words(cell, samples=samples)),
            *("--json", f"--out={folder}"),
            *(["--resume"] if (folder / "config.json").exists() else []),
        ]

    def train_words(self, cell: Cell, *, samples: int) -> list[str]:
        """Return the words of `kdcache train` for a cell, without those for its workspace."""
        settings = cell.settings
        subset = self.subset(settings)
        words = ["train", f"--subset={subset or 'full'}", f"--model={settings['student']}"]
        words += [f"--batch-size={settings['batch_size']}", f"--seed={settings['seed']}"]
        words += TrainingLength.parse(settings["recipe"]).words(
            samples=samples,
            batch_size=settings["batch_size"],
            evaluations=settings["evaluations"],
        )
        if settings["kd"]:
            words += [f"--{name}={settings[name]}" for name in ("loss", "alpha", "temperature")]
            words += ["--reshape"] if settings["reshape"] else []
            if settings["views"] == LIVE:
                words.append(f"--live-teacher={self.teacher_file(settings, settings['teacher'])}")
            else:
                words.append(f"--store={self.store(settings, settings['teacher'])}")
                words.append(f"--views={settings['views']}")
        else:
            words.append("--no-kd")
        others = {name: settings[name] for name in TRAIN_OPTIONS if settings[name] is not None}
        return [*words, *command_words(others, "train"), _THREADS]

    def _subset(self, settings: Mapping[str, Any]) -> Need:
        path = self.subset(settings)
        assert path is not None  # noqa: S101  (the cell selects)
        workspace = self.workspace(settings)
        by = self._selection_teacher(settings)
        select = _kdcache(workspace, self.select_words(settings))
        store = self.needs_of_teacher(settings, by, with_store=True)[-1]
        return Need(
            f"{workspace.root.name}.subset.{path.stem}",
            f"subset {path.stem} of {workspace.root.name}",
            lambda: select,
            path.exists,
            (store.key,),
        )

    def select_words(self, settings: Mapping[str, Any]) -> list[str]:
        """Return the words of `kdcache select` for a cell's subset."""
        store = self.store(settings, self._selection_teacher(settings))
        words = ["select", f"--method={settings['method']}", f"--keep={settings['keep']}"]
        words += [f"--store={store}", f"--out={self.subset(settings)}"]
        words += [f"--seed={settings['seed']}"] if _draws(settings["method"]) else []
        others = {name: settings[name] for name in SELECT_OPTIONS if settings[name] is not None}
        return [*words, *command_words(others, "select")]

    def _selection_teacher(self, settings: Mapping[str, Any]) -> str:
        """Return the teacher whose store a selection reads; `random` reads only labels from it."""
        return settings["score_teacher"] or next(iter(self._teachers))

    def _teacher_name(self, teacher: str) -> str:
        definition = dict(self._teachers[teacher])
        epoch = definition.pop("epoch", None)
        base = self._base_name(definition)
        return base if epoch is None else f"{base}-epoch{epoch}"

    def _base_name(self, definition: Mapping[str, Any]) -> str:
        content = json.dumps(definition, sort_keys=True).encode()
        model = re.sub(r"[^A-Za-z0-9_-]+", "-", definition["model"])
        return f"{model}-{hashlib.sha256(content).hexdigest()[:8]}"


def in_order(needs: Iterable[Need]) -> dict[str, Need]:
    """Return needs by key, without duplicates, in the order of their first occurrence."""
    ordered: dict[str, Need] = {}
    for need in needs:
        ordered.setdefault(need.key, need)
    return ordered


def _variant(settings: Mapping[str, Any]) -> str:
    noise, tune = settings.get("label_noise"), settings.get("tune_fraction")
    words = [str(settings["data"])]
    words += [f"noise{noise:g}"] if noise else []
    words += [f"tune{tune:g}"] if tune else []
    return "-".join(words)


def _draws(method: str) -> bool:
    options = PruningOptions()
    object.__setattr__(options, "method", method)
    return options.draws


def _without_epoch(definition: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in definition.items() if key != "epoch"}


def _teacher_text(definition: Mapping[str, Any]) -> str:
    others = [f"{key} {value}" for key, value in definition.items() if key != "model"]
    return ", ".join([definition["model"], *others])


def _kdcache(workspace: Workspace, words: list[str]) -> list[str]:
    return [sys.executable, "-m", "kdcache", *words, f"--workspace={workspace.root}"]
