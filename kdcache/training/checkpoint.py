"""What a run needs to go on as if it had never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from kdcache.teacher.weights import fill_model, load_weights, save_weights


class Progress(NamedTuple):
    """How far a run is."""

    epochs_done: int
    top1_best: float | None
    """Percent; None without an evaluation split."""
    images_seen: int
    train_seconds: float
    teacher_forwards: int


class Checkpoint:
    """Model, optimiser, schedule, loss scaler and torch's generator, in one safetensors file.

    Args:
        path: of the file; written atomically.
        model: the model that is trained.
        optimizer: its optimiser; SGD's momentum is kept by parameter name.
        schedule: the learning-rate schedule.
        scaler: of fp16 training.
    """

    def __init__(
        self,
        path: Path,
        model: nn.Module,
        optimizer: torch.optim.SGD,
        schedule: OneCycleLR,
        scaler: torch.amp.GradScaler,
    ) -> None:
        self._path = path
        self._model = model
        self._optimizer = optimizer
        self._schedule = schedule
        self._scaler = scaler

    def exists(self) -> bool:
        """Return whether an epoch was finished."""
        return self._path.exists()

    def save(self, progress: Progress) -> None:
        """Replace the file."""
        tensors = {f"model/{name}": value for name, value in self._model.state_dict().items()}
        for name, parameter in self._model.named_parameters():
            momentum = self._optimizer.state[parameter].get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum/{name}"] = momentum
        tensors["generator"] = torch.get_rng_state()
        about: dict[str, Any] = {
            "progress": progress._asdict(),
            "schedule_steps": self._schedule.last_epoch,
            "scaler": self._scaler.state_dict(),
        }
        save_weights(self._path, tensors, about)

    def load(self) -> Progress:
        """Take up what the file holds."""
        tensors, about = load_weights(self._path)
        device = next(self._model.parameters()).device
        weights = {
            name.removeprefix("model/"): value
            for name, value in tensors.items()
            if name.startswith("model/")
        }
        fill_model(self._model, weights, path=self._path)
        for name, parameter in self._model.named_parameters():
            momentum = tensors.get(f"momentum/{name}")
            if momentum is not None:
                # In the parameter's own memory format, or the update would round differently.
                buffer = torch.empty_like(parameter).copy_(momentum.to(device))
                self._optimizer.state[parameter]["momentum_buffer"] = buffer
        torch.set_rng_state(tensors["generator"])
        self._schedule.last_epoch = about["schedule_steps"] - 1
        # As its load_state_dict; at 1 torch would warn that the optimiser has not stepped yet.
        self._schedule._step_count = about["schedule_steps"] + 1  # noqa: SLF001
        self._schedule.step()
        self._scaler.load_state_dict(about["scaler"])
        return Progress(**about["progress"])
