"""Make the row of a cell or teacher from its settings and its run folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kdcache.studies.cells import SELECT_OPTIONS, TRAIN_OPTIONS, Cell
from kdcache.studies.processes import ProcessResult
from kdcache.studies.provenance import checkout_commit, package_about, processor
from kdcache.studies.training_length import TrainingLength
from kdcache.training.run_config import read_config

_TYPED_SETTINGS = (
    *("data", "label_noise", "tune_fraction", "student", "method", "keep", "kd", "loss"),
    *("temperature", "reshape", "recipe", "batch_size", "evaluations", "seed"),
)
"""Settings whose column has the type of the setting; others are stored as text."""


def row_of_cell(cell: Cell, *, commit: str | None) -> dict[str, Any]:
    """Return the row of a cell without its outcome: settings and origin."""
    settings = cell.settings
    others = {
        name: settings[name]
        for name in (*SELECT_OPTIONS, *TRAIN_OPTIONS)
        if settings[name] is not None
    }
    texts = {
        name: None if settings[name] is None else str(settings[name]) for name in ("alpha", "views")
    }
    typed = {name: settings[name] for name in _TYPED_SETTINGS}
    teachers = {role: settings[role] for role in ("teacher", "score_teacher")}
    definitions = {
        f"{role}_settings": name and json.dumps(cell.teachers[name], sort_keys=True)
        for role, name in teachers.items()
    }
    return {
        "cell": cell.id,
        "kind": "student",
        "block": cell.block,
        **typed,
        **texts,
        **teachers,
        **definitions,
        "arm": TrainingLength.parse(settings["recipe"]).arm,
        "options": json.dumps(others, sort_keys=True),
        **_origin(commit),
    }


def row_of_teacher(
    settings: Mapping[str, Any],
    teacher: str,
    definition: Mapping[str, Any],
    *,
    block: str,
    commit: str | None,
) -> dict[str, Any]:
    """Return the row of a teacher that a block makes, without its outcome.

    Args:
        settings: the settings of its data: `data`, `label_noise` and `tune_fraction`.
        teacher: its name in the grid.
        definition: its model, options and epoch.
        block: name of the block.
        commit: commit of the package; None: that of the checkout, if there is one.
    """
    about = {name: settings.get(name) for name in ("data", "label_noise", "tune_fraction")}
    text = json.dumps(definition, sort_keys=True)
    identity = json.dumps([about, text], sort_keys=True)
    return {
        "cell": f"teacher-{hashlib.sha256(identity.encode()).hexdigest()[:16]}",
        "kind": "teacher",
        "block": block,
        **about,
        "teacher": teacher,
        "teacher_settings": text,
        **_origin(commit),
    }


def outcome_of_teacher(weights: Path) -> dict[str, Any]:
    """Return the outcome of a teacher, from the metadata of its weights file."""
    from kdcache.models.weights import load_weights

    _, about = load_weights(weights)
    return {
        "status": "ok",
        "top1_last": about.get("top1"),
        "data_digest": about["data_fingerprint"],
        "teacher_digest": about["digest"],
    }


def outcome_of_cell(ended: ProcessResult, folder: Path) -> dict[str, Any]:
    """Return the outcome of a trained student.

    Args:
        ended: the result of its process, which printed JSON as its last line.
        folder: its run folder.
    """
    result = json.loads(ended.output.strip().splitlines()[-1])
    config = read_config(folder)["config"]
    is_one_run = result["resumed_from_epoch"] == 0
    return {
        "status": "ok",
        "top1_last": result["top1"],
        "top1_best": result["top1_best"],
        "top5_last": result["top5"],
        **{name: result[name] for name in ("samples", "steps")},
        **{name: result[name] for name in ("student_forwards", "teacher_forwards")},
        "processor_seconds": ended.processor_seconds if is_one_run else None,
        "wall_seconds": ended.wall_seconds if is_one_run and ended.was_alone else None,
        "data_digest": config["data_fingerprint"],
        "subset_digest": config["sample_ids_digest"],
        "teacher_digest": config["teacher_digest"],
        "store_digest": config["store_digest"],
    }


def now() -> dict[str, str]:
    """Return the column `date` with the current time, in UTC."""
    return {"date": datetime.now(UTC).isoformat(timespec="seconds")}


def _origin(commit: str | None) -> dict[str, Any]:
    return {
        **package_about(),
        "commit": commit or checkout_commit(),
        "processor": processor(),
        "torch": version("torch"),
    }
