"""Save the weights after each epoch, and explain write errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from kdcache.errors import TrainingError
from kdcache.models.weights import save_weights
from kdcache.training.averaging import WeightAverage


def early_weights(run_dir: Path, epoch: int) -> Path:
    """Return the path of the weights kept after an epoch, counted from 1."""
    return run_dir / f"epoch{epoch}.safetensors"


def save_epoch(
    run_dir: Path,
    model: nn.Module,
    average: WeightAverage | None,
    *,
    is_best: bool,
    keep_as: Path | None = None,
    about: dict[str, Any],
) -> None:
    """Write `last.safetensors`, and `best` and `ema` if there are new ones.

    Args:
        run_dir: existing folder.
        model: the model after an epoch.
        average: average of its weights, or None.
        is_best: whether the epoch has the highest top-1 so far.
        keep_as: file that also receives these weights (the averaged ones if they exist).
        about: metadata of the files.
    """
    weights = model.state_dict()
    save_weights(run_dir / "last.safetensors", weights, about)
    if is_best:
        save_weights(run_dir / "best.safetensors", weights, about)
    if keep_as is not None:
        save_weights(keep_as, average.model.state_dict() if average else weights, about)
    if average:
        save_weights(run_dir / "ema.safetensors", average.model.state_dict(), about)


@contextmanager
def explain_write_errors(run_dir: Path, epoch: int) -> Iterator[None]:
    """Turn a write error, such as a full disk, into an error that names how to continue the run.

    Args:
        run_dir: run folder.
        epoch: the epoch to be written, from 0.

    Raises:
        TrainingError: if the block raises a write error.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"epoch {epoch + 1} cannot be written to {run_dir}: {error}. Its checkpoint is still "
            f"that of epoch {epoch}: make space and continue with --resume"
        ) from error
