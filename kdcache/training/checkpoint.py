"""Checkpoints: everything that a run needs to continue with the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from kdcache.errors import CacheMismatchError
from kdcache.identity import differences
from kdcache.models.weights import fill_model, load_weights, save_weights
from kdcache.models.weights_files import PROTECTS, protected
from kdcache.training.averaging import WeightAverage
from kdcache.training.metrics import METRICS
from kdcache.training.schedule import load_schedule, schedule_state

CHECKPOINT = "resume.safetensors"
"""File name in a run folder."""


class Progress(NamedTuple):
    """The progress of a run."""

    epochs_done: int
    top1_best: float | None
    """Percent; None if nothing was evaluated."""
    images_seen: int
    train_seconds: float
    teacher_forwards: int


class Checkpoint:
    """The states of model, optimiser, schedule, loss scaler, average and generators in one file.

    Args:
        path: safetensors file; written atomically.
        model: the model that is trained.
        optimizer: its optimiser; its state is saved by parameter name.
        schedule: the learning-rate schedule.
        scaler: loss scaler of fp16 training.
        average: average of the model's weights, or None.
        about: model and settings; loading refuses a checkpoint with others.
        loss: the user's own loss, if it has parameters.
    """

    def __init__(
        self,
        path: Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: LRScheduler,
        scaler: torch.amp.GradScaler,
        average: WeightAverage | None = None,
        about: dict[str, Any] | None = None,
        *,
        loss: nn.Module | None = None,
    ) -> None:
        self._path = path
        self._model = model
        self._optimizer = optimizer
        self._schedule = schedule
        self._scaler = scaler
        self._average = average
        # Keyed by the prefix of their tensors in the file.
        self._modules = {"model": model} | ({} if loss is None else {"loss": loss})
        self._identity = (about or {}) | {
            "optimizer": type(optimizer).__name__,
            "schedule": type(schedule).__name__,
            "ema": average.decay if average else None,
        }

    def exists(self) -> bool:
        """Return whether a checkpoint exists."""
        return self._path.exists()

    def save(self, progress: Progress) -> None:
        """Write the checkpoint, replacing the previous one."""
        tensors: dict[str, Tensor] = {}
        for folder, module in self._modules.items():
            tensors |= _under(folder, module.state_dict())
        for key, parameter in self._optimized():
            tensors |= _under(key, self._optimizer.state.get(parameter, {}))
        if self._average:
            tensors |= _under("average", self._average.model.state_dict())
        tensors["generator"] = torch.get_rng_state()
        if self._device.type == "cuda":
            tensors["cuda_generator"] = torch.cuda.get_rng_state(self._device)
        about = self._identity | {
            "progress": progress._asdict(),
            "rates": [group["lr"] for group in self._optimizer.param_groups],
            "schedule_state": schedule_state(self._schedule),
            "scaler": self._scaler.state_dict(),
            "averaged_steps": self._average.steps if self._average else 0,
            PROTECTS: protected(self._path.parent, METRICS),
        }
        save_weights(self._path, tensors, about)

    def load(self) -> Progress:
        """Restore all states from the file and return the progress.

        Raises:
            CacheMismatchError: if the file has another model, optimiser, schedule or average.
            WeightsError: if the file is damaged or its tensors do not fit the model.
        """
        tensors, about = load_weights(self._path)
        if differ := differences(about, self._identity):
            raise CacheMismatchError(
                f"{self._path} is the checkpoint of another run: {differ}. "
                "Resume with the same options, or start a new run"
            )
        for folder, module in self._modules.items():
            fill_model(module, _below(folder, tensors), path=self._path)
        for key, parameter in self._optimized():
            kept = _below(key, tensors)
            if kept:
                # Adam's count of steps stays on the host.
                self._optimizer.state[parameter] = {
                    key: value if key == "step" else _like(parameter, value)
                    for key, value in kept.items()
                }
        for group, rate in zip(self._optimizer.param_groups, about["rates"], strict=True):
            group["lr"] = rate
        if self._average:
            fill_model(self._average.model, _below("average", tensors), path=self._path)
            self._average.resume_at(about["averaged_steps"])
        torch.set_rng_state(tensors["generator"])
        if "cuda_generator" in tensors and self._device.type == "cuda":
            torch.cuda.set_rng_state(tensors["cuda_generator"], self._device)
        load_schedule(self._schedule, about["schedule_state"])
        self._scaler.load_state_dict(about["scaler"])
        return Progress(**about["progress"])

    def _optimized(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield each trained parameter with the prefix of its optimiser state in the file."""
        for folder, module in self._modules.items():
            prefix = "optimizer" if folder == "model" else f"{folder}_optimizer"
            for name, parameter in module.named_parameters():
                yield f"{prefix}/{name}", parameter

    @property
    def _device(self) -> torch.device:
        return next(self._model.parameters()).device


def _under(folder: str, tensors: dict[str, Any]) -> dict[str, Tensor]:
    return {f"{folder}/{name}": value for name, value in tensors.items() if value is not None}


def _below(folder: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = f"{folder}/"
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """Return a value in its parameter's memory format; another one would change the rounding."""
    return torch.empty_like(parameter, requires_grad=False).copy_(value)
