"""Read and write the config file of a run folder; this needs no torch."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdcache.seals import read_sealed_json, write_sealed_json

CONFIG = "config.json"


def read_config(run_dir: Path) -> dict[str, Any]:
    """Return the content of a run's config file: `config` and `environment`.

    Raises:
        FileNotFoundError: if there is no such file.
        CacheCorruptError: if it is damaged, or an earlier version of kdcache wrote it.
    """
    remedy = f"Start a new run, and remove this one: rm -r {shlex.quote(str(run_dir))}"
    return read_sealed_json(run_dir / CONFIG, remedy=remedy)


def save_config(run_dir: Path, config: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
    """Write a run's config file atomically."""
    write_sealed_json(run_dir / CONFIG, {"config": config, "environment": environment})
