"""Find the folder of a run, and write its config."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from kdcache.cores import available_cores
from kdcache.errors import CacheMismatchError, ConfigError
from kdcache.identity import differences
from kdcache.options import TrainOptions
from kdcache.progress import logger
from kdcache.training.run_config import CONFIG, read_config, save_config
from kdcache.workspace import Workspace

NUMERICAL_ENVIRONMENT = ("device", "threads", "torch")
"""Parts of the environment that decide the last bits of a step's sums."""


class RunFolder(NamedTuple):
    """The folder that a run writes to."""

    path: Path
    holds_run: bool
    """True if the folder holds a run to continue."""


def run_folder(workspace: Workspace, name: str, options: TrainOptions) -> RunFolder:
    """Return the run's folder: new, or with --resume the one to continue.

    Raises:
        ConfigError: if there is no run to continue, or --out exists and --resume is not given.
    """
    begins_what_is_missing = options.seeds > 1
    if options.out is not None:
        out = Path(options.out)
        has_run = (out / CONFIG).exists()
        has_run_to_resume = options.resume and has_run
        if options.resume and not has_run and not begins_what_is_missing:
            raise ConfigError(
                f"--resume is given, but {out} holds no run. Leave it out",
                parameter="resume",
                value=True,
            )
        if not has_run_to_resume and out.exists() and any(out.iterdir()):
            raise ConfigError(
                parameter="out",
                value=out,
                problem="it exists and is not empty",
                remedy="Use --resume to continue a run, or name another folder",
            )
        return RunFolder(out, has_run_to_resume)
    number = 1
    folder = workspace.run(name)
    newest = None
    while folder.exists():
        newest = folder
        number += 1
        folder = workspace.run(f"{name}-{number}")
    if not options.resume or (newest is None and begins_what_is_missing):
        return RunFolder(folder, holds_run=False)
    if newest is None:
        raise ConfigError(
            f"--resume is given, but there is no run {folder}. Leave it out",
            parameter="resume",
            value=True,
        )
    # A run without a config stopped before its first step.
    return RunFolder(newest, holds_run=(newest / CONFIG).exists())


def has_same_config(run_dir: Path, config: dict[str, Any]) -> bool:
    """Return whether a folder holds a run with the same config."""
    exists = (run_dir / CONFIG).exists()
    return exists and not differences(read_config(run_dir)["config"], as_json(config))


def write_config(
    run_dir: Path, config: dict[str, Any], device: torch.device, *, resume: bool
) -> None:
    """Write the config of a new run, or check that a resumed run has the same one.

    Raises:
        CacheMismatchError: if a resumed run has another config; names the differences.
    """
    environment = _environment(device)
    if not resume:
        run_dir.mkdir(parents=True, exist_ok=True)
        save_config(run_dir, config, environment)
        return
    found = read_config(run_dir)
    if differ := differences(found["config"], as_json(config)):
        raise CacheMismatchError(
            f"{run_dir} was started with other settings: {differ}. "
            "Resume with the same options, or start a new run"
        )
    decisive = {name: environment[name] for name in NUMERICAL_ENVIRONMENT}
    if differ := differences(found["environment"], decisive):
        logger.warning(
            "%s was started elsewhere: %s. It continues, but its weights differ in the last bits",
            run_dir,
            differ,
        )


def as_json(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config as JSON reads it back, with lists instead of tuples."""
    read_back: dict[str, Any] = json.loads(json.dumps(config))
    return read_back


def _environment(device: torch.device) -> dict[str, Any]:
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
    } | {package: version(package) for package in ("kdcache", "torch", "ffcv", "numpy", "zarr")}
