"""The weights that a run leaves after each epoch, and what is said where they cannot be written."""

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
    """Return the file of the weights that are kept of an epoch, counted from 1."""
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
    """Replace `last.safetensors`, and `best` and `ema` where there are new ones.

    Args:
        run_dir: existing folder.
        model: with the weights after an epoch.
        average: of its weights.
        is_best: no epoch before was as good.
        keep_as: file that receives these weights too, the averaged ones where there are any.
        about: what the files say of themselves.
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
    """Say of a folder that cannot be written, such as on a full disk, how the run goes on.

    Args:
        run_dir: of the run.
        epoch: that is to be written, from 0.

    Raises:
        TrainingError: instead of the system's error.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"epoch {epoch + 1} cannot be written to {run_dir}: {error}. Its checkpoint is still "
            f"that of epoch {epoch}: make space and go on with --resume"
        ) from error
