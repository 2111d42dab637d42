"""The folder of a run: which one it is, and what it says of itself."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from kdcache.errors import CacheMismatchError, ConfigError
from kdcache.files import differences, read_json, write_json
from kdcache.options import TrainOptions
from kdcache.workspace import Workspace


def run_folder(workspace: Workspace, name: str, options: TrainOptions) -> Path:
    """Return the run's folder: new, or with --resume the one to continue."""
    if options.out is not None:
        has_run = (options.out / "config.json").exists()
        if options.resume and not has_run:
            raise ConfigError(f"--resume is given, but {options.out} holds no run. Leave it out")
        if not options.resume and options.out.exists() and any(options.out.iterdir()):
            raise ConfigError(
                f"--out is {options.out}, which is there and not empty. Use --resume to continue "
                "a run, or name another folder"
            )
        return options.out
    number = 1
    folder = workspace.run(name)
    newest = None
    while folder.exists():
        newest = folder
        number += 1
        folder = workspace.run(f"{name}-{number}")
    if not options.resume:
        return folder
    if newest is None:
        raise ConfigError(f"--resume is given, but there is no run {folder}. Leave it out")
    return newest


def write_config(
    run_dir: Path, config: dict[str, Any], device: torch.device, *, resume: bool
) -> None:
    """Write what a run was started with, or check that it is resumed with the same.

    Raises:
        CacheMismatchError: if a resumed run was started otherwise; names what differs.
    """
    path = run_dir / "config.json"
    if resume:
        found = read_json(path)["config"]
        if differ := differences(found, config):
            raise CacheMismatchError(
                f"{run_dir} was started otherwise: {differ}. "
                "Resume with the same options, or start a new run"
            )
        return
    environment = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
    } | {package: version(package) for package in ("kdcache", "torch", "ffcv", "numpy", "zarr")}
    run_dir.mkdir(parents=True, exist_ok=True)
    write_json(path, {"config": config, "environment": environment})
