"""`kdcache run`: run the steps of a pipeline whose options or inputs have changed."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from kdcache import __version__
from kdcache.commands import function_for
from kdcache.data.beton_manifest import manifest_path, names_path
from kdcache.data.digests import digests_path
from kdcache.errors import CacheMismatchError
from kdcache.locks import file_lock
from kdcache.options import CommonOptions, PackOptions, RunOptions, TrainOptions
from kdcache.pipeline_runs.pipeline import Step, find_pipeline, read_pipeline
from kdcache.pipeline_runs.records import Records
from kdcache.pipeline_runs.results import PipelineResult, StepResult, StudentFigures
from kdcache.pipeline_runs.signatures import inputs_of, signature
from kdcache.progress import logger
from kdcache.workspace import Remembered, Workspace

_NOT_A_DEPENDENCY = {field.name for field in fields(CommonOptions)} | {"num_workers", "overwrite"}
"""Options that do not change a result."""

_OVERWRITE: dict[str, Any] = {"overwrite": True}

_REMEMBERED: dict[str, Remembered] = {"build-logits": "store", "select": "subset", "train": "run"}


def run(options: RunOptions) -> PipelineResult:
    """Run the steps of a pipeline that are not up to date, and report why each runs or does not.

    recipes/NAME.json in the workspace records the dependencies of each step: its options, and a
    signature of every file that it read or wrote.

    Raises:
        ConfigError: if there is no such pipeline, or one of its options is wrong.
        KDCacheError: if another process runs the pipeline in this workspace, or a step fails; the
            steps that have finished stay up to date.
    """
    path = find_pipeline(str(options.pipeline))
    workspace = Workspace(Path(options.workspace))
    steps = read_pipeline(
        path,
        workspace=workspace.root,
        source=None if options.source is None else str(options.source),
    )
    folder = workspace.root / "recipes"
    lock = file_lock(folder / f".{path.stem}.lock", purpose="run of a pipeline")
    with nullcontext() if options.dry_run else lock:
        done = _run_steps(steps, folder / f"{path.stem}.json", options, workspace)
    return PipelineResult(pipeline=path, steps=tuple(done))


def _run_steps(
    steps: list[Step], record: Path, options: RunOptions, workspace: Workspace
) -> list[StepResult]:
    """Run the steps; return the result of each."""
    records = Records(record)
    done: list[StepResult] = []
    for step in steps:
        dependencies = dependencies_of(step, workspace)
        why = records.reason_to_run(step.name, dependencies)
        action = "would run" if options.dry_run else "runs"
        logger.info("%s: %s", step.name, f"{action}, {why}" if why else "up to date")
        started = time.perf_counter()
        if why and options.dry_run:
            done.append(
                StepResult(
                    name=step.name,
                    command=step.command,
                    did="would run",
                    why=why,
                    seconds=None,
                    student=None,
                )
            )
            continue
        result = (
            run_step(step, dependencies, records, workspace) if why else records.result(step.name)
        )
        if step.command in _REMEMBERED and not options.dry_run:
            # Later steps read the last store, subset or run by default, whatever ran in between.
            workspace.remember(_REMEMBERED[step.command], Path(result["path"]))
        done.append(
            StepResult(
                name=step.name,
                command=step.command,
                did="ran" if why else "up to date",
                why=why,
                seconds=round(time.perf_counter() - started, 2) if why else None,
                student=StudentFigures.of(result) if step.command == "train" else None,
            )
        )
    return done


def dependencies_of(step: Step, workspace: Workspace) -> dict[str, Any]:
    """Return everything that a step's result depends on, as JSON content."""
    given = {
        name: value for name, value in asdict(step.options).items() if name not in _NOT_A_DEPENDENCY
    }
    content = {
        "command": step.command,
        "kdcache": __version__,
        "options": given,
        "inputs": inputs_of(step.options, workspace),
    }
    as_json: dict[str, Any] = json.loads(json.dumps(content, default=str))
    return as_json


def run_step(
    step: Step, dependencies: dict[str, Any], records: Records, workspace: Workspace
) -> dict[str, Any]:
    """Run one step, record it, and return its result."""
    options = step.options
    if isinstance(options, TrainOptions) and records.is_unfinished(step.name, dependencies):
        options = replace(
            options, resume=_made_run_folder(workspace, records.runs_before(step.name))
        )
    before = _runs(workspace)
    records.begin(step.name, dependencies, sorted(str(path) for path in before))
    function = function_for(options)
    try:
        result = function(options).to_json()
    except CacheMismatchError:
        if not (records.was_ever_finished(step.name) and hasattr(options, "overwrite")):
            raise
        logger.info("%s: replacing the outputs of an earlier run of this pipeline", step.name)
        result = function(replace(options, **_OVERWRITE)).to_json()
    records.finish(step.name, dependencies, result, outputs_of(options, result))
    return result


def outputs_of(options: CommonOptions, result: dict[str, Any]) -> dict[str, Any]:
    """Return the signature of every file that a step wrote, by path."""
    paths = [Path(result["path"])] if "path" in result else []
    if isinstance(options, PackOptions):
        splits = [result[split] for split in ("train", "val") if result.get(split)]
        betons = [Path(about["path"]) for about in splits] or paths
        files = (Path, manifest_path, digests_path, names_path)
        paths = [of(path) for path in betons for of in files]
    return {str(path): signature(path) for path in paths}


def _runs(workspace: Workspace) -> set[Path]:
    return set(workspace.run("x").parent.glob("*"))


def _made_run_folder(workspace: Workspace, before: list[str]) -> bool:
    """Return whether the interrupted step had already made its run folder."""
    return any(str(path) not in before for path in _runs(workspace))
