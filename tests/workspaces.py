"""Copies of a workspace that a test may write to."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any


def copy_workspace(source: Path, target: Path) -> Path:
    """Copy a workspace; the betons, which nothing changes in place, are links."""

    def copy(file: str, to: str) -> None:
        if file.endswith(".beton"):
            os.link(file, to)
        else:
            shutil.copy2(file, to)

    return Path(shutil.copytree(source, target, copy_function=copy))


def metrics(run_dir: Path | str) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl."""
    lines = Path(run_dir, "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def without_times(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return metrics without what differs from one run to the next: seconds and rates."""
    return [
        {
            name: value
            for name, value in line.items()
            if "seconds" not in name and name != "images_per_second"
        }
        for line in lines
    ]
