"""Write the metrics of every epoch: a line of JSON, and TensorBoard events if requested.

Each epoch appears once, however often the run was stopped: the line of an epoch that is trained
again is dropped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kdcache.errors import ConfigError
from kdcache.files import replace_atomically

METRICS = "metrics.jsonl"
"""File name in a run folder."""


def require_tensorboard() -> None:
    """Check before a run starts that TensorBoard is installed.

    Raises:
        ConfigError: if its package is missing; names the command that installs it.
    """
    if find_spec("tensorboard") is None:
        raise ConfigError(
            "--tensorboard is given, but the package tensorboard is not installed. "
            "Run: pip install 'kdcache[tensorboard]'",
            parameter="tensorboard",
            value=True,
        )


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Return the line of every epoch of a run, in order."""
    lines = (run_dir / METRICS).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


class MetricsLog:
    """`metrics.jsonl` of a run folder, and `tensorboard/`.

    Args:
        run_dir: existing folder.
        epochs_done: number of finished epochs; lines of later epochs are dropped.
        tensorboard: also write events, under the names of the lines' fields.
    """

    def __init__(self, run_dir: Path, *, epochs_done: int, tensorboard: bool) -> None:
        self._path = run_dir / METRICS
        self._keep_epochs(epochs_done)
        self._events = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # TensorBoard ignores earlier events from this step on.
            self._events = SummaryWriter(run_dir / "tensorboard", purge_step=epochs_done + 1)

    def __enter__(self) -> Self:
        """Return the log."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the event file."""
        if self._events is not None:
            self._events.close()

    def write(self, line: Mapping[str, Any]) -> None:
        """Add the line of one epoch; it has an `epoch`, from 1."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._events is None:
            return
        for name, value in line.items():
            if name != "epoch" and value is not None:
                self._events.add_scalar(name, value, global_step=line["epoch"])
        self._events.flush()

    def _keep_epochs(self, epochs: int) -> None:
        if not self._path.exists():
            return
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [
            line for line in lines if line.endswith("\n") and json.loads(line)["epoch"] <= epochs
        ]
        with replace_atomically(self._path) as partial:
            partial.write_text("".join(kept), encoding="utf-8")
