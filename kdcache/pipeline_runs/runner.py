"""`kdcache run`: every stage of a recipe whose options or inputs have changed, in one process."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from kdcache import __version__
from kdcache.commands import function_for
from kdcache.data.beton import digests_path, manifest_path
from kdcache.errors import CacheMismatchError
from kdcache.files import file_lock
from kdcache.options import CommonOptions, PackOptions, RunOptions, TrainOptions
from kdcache.pipeline_runs.pipeline import Step, find_pipeline, read_pipeline
from kdcache.pipeline_runs.records import Records
from kdcache.pipeline_runs.signatures import inputs_of, signature
from kdcache.progress import logger
from kdcache.workspace import Remembered, Workspace

_DECIDES_NOTHING = {field.name for field in fields(CommonOptions)} | {"num_workers", "overwrite"}
"""Options that change no result."""

_REPLACING: dict[str, Any] = {"overwrite": True}

_REMEMBERED: dict[str, Remembered] = {"build-logits": "store", "select": "subset", "train": "run"}

_STUDENT = ("samples", "top1", "top1_best", "top5", "teacher_forwards", "images_per_second")


def run(options: RunOptions) -> dict[str, Any]:
    """Run the stages of a recipe that are not up to date, and say why each runs or does not.

    What each stage was made with and from stands in recipes/NAME.json of the workspace: its
    options, the size and time of change of the files it read, and of those it wrote.

    Returns:
        `recipe`, `stages` (name -> `did`: "ran", "up to date" or "would run"; `why`; `seconds`) and
        `students` (name of each `train` stage -> what it came to).

    Raises:
        ConfigError: if there is no such recipe, or one of its options is wrong.
        KDCacheError: if another process runs the recipe in this workspace; what the stages raise:
            those before it are done, and are not done again.
    """
    path = find_pipeline(options.recipe)
    workspace = Workspace(options.workspace)
    stages = read_pipeline(
        path, workspace=options.workspace, quiet=options.quiet, source=options.source
    )
    folder = options.workspace / "recipes"
    lock = file_lock(folder / f".{path.stem}.lock", purpose="run of a recipe")
    with nullcontext() if options.dry_run else lock:
        done, students = _run_steps(stages, folder / f"{path.stem}.json", options, workspace)
    return {"recipe": str(path), "stages": done, "students": students}


def _run_steps(
    stages: list[Step], record: Path, options: RunOptions, workspace: Workspace
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Return what each stage did, and what each student came to."""
    records = Records(record)
    done: dict[str, dict[str, Any]] = {}
    students: dict[str, dict[str, Any]] = {}
    for stage in stages:
        asked = dependencies_of(stage, workspace)
        why = records.reason_to_run(stage.name, asked)
        does = "would run" if options.dry_run else "runs"
        logger.info("%s: %s", stage.name, f"{does}, {why}" if why else "up to date")
        started = time.perf_counter()
        if why and options.dry_run:
            done[stage.name] = {"did": "would run", "why": why, "seconds": None}
            continue
        result = run_step(stage, asked, records, workspace) if why else records.result(stage.name)
        if stage.command in _REMEMBERED and not options.dry_run:
            # What the next stages take when they are not told, whatever ran here in between.
            workspace.remember(_REMEMBERED[stage.command], Path(result["path"]))
        done[stage.name] = {
            "did": "ran" if why else "up to date",
            "why": why,
            "seconds": round(time.perf_counter() - started, 2) if why else None,
        }
        if stage.command == "train":
            students[stage.name] = {name: result.get(name) for name in _STUDENT}
    return done, students


def dependencies_of(stage: Step, workspace: Workspace) -> dict[str, Any]:
    """Return everything that a stage's result depends on, as JSON content."""
    given = {
        name: value for name, value in asdict(stage.options).items() if name not in _DECIDES_NOTHING
    }
    content = {
        "command": stage.command,
        "kdcache": __version__,
        "options": given,
        "inputs": inputs_of(stage.options, workspace),
    }
    as_json: dict[str, Any] = json.loads(json.dumps(content, default=str))
    return as_json


def run_step(
    stage: Step, asked: dict[str, Any], records: Records, workspace: Workspace
) -> dict[str, Any]:
    """Run one stage and note what it was made with; return its result."""
    options = stage.options
    if isinstance(options, TrainOptions) and records.is_unfinished(stage.name, asked):
        options = replace(options, resume=_has_run(workspace, records.begun(stage.name)))
    before = _runs(workspace)
    records.begin(stage.name, asked, sorted(str(path) for path in before))
    function = function_for(options)
    try:
        result = function(options)
    except CacheMismatchError:
        if not (records.was_ever_finished(stage.name) and hasattr(options, "overwrite")):
            raise
        logger.info("%s: what is there was made by this recipe, and is replaced", stage.name)
        result = function(replace(options, **_REPLACING))
    records.finish(stage.name, asked, result, outputs_of(options, result))
    return result


def outputs_of(options: CommonOptions, result: dict[str, Any]) -> dict[str, Any]:
    """Return the signature of what a stage wrote, by path."""
    paths = [Path(result["path"])] if "path" in result else []
    if isinstance(options, PackOptions):
        splits = [result[split] for split in ("train", "val") if result.get(split)]
        betons = [Path(about["path"]) for about in splits] or paths
        paths = [of(path) for path in betons for of in (Path, manifest_path, digests_path)]
    return {str(path): signature(path) for path in paths}


def _runs(workspace: Workspace) -> set[Path]:
    return set(workspace.run("x").parent.glob("*"))


def _has_run(workspace: Workspace, before: list[str]) -> bool:
    """Return whether the stage that was begun had come to making its run folder."""
    return any(str(path) not in before for path in _runs(workspace))
