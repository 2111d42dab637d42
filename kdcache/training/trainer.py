"""The training loop, for students and teachers alike."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdcache.errors import ConfigError, TrainingError
from kdcache.files import replace_atomically
from kdcache.loader.distill import Batch, DistillLoader
from kdcache.options import Precision
from kdcache.progress import logger, progress_bar
from kdcache.teacher.forward import Normalise, autocast, matmul_precision
from kdcache.teacher.weights import save_weights
from kdcache.training.checkpoint import Checkpoint, Progress
from kdcache.training.evaluate import Accuracy, Evaluator
from kdcache.training.forwards import ForeignForwardCounter
from kdcache.training.losses import LossParts, distillation_loss, label_loss, reshape_logits
from kdcache.training.optim import make_optimizer, make_schedule


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Everything that the loop itself depends on."""

    epochs: int
    lr: float
    alpha: float
    temperature: float
    reshape: bool = False
    """MDSLR's reshaping of the teacher's logits, before the temperature."""
    precision: Precision


class TrainResult(NamedTuple):
    """What a run came to."""

    last: Accuracy | None
    """Of the weights after the last epoch; None without an evaluation split."""
    top1_best: float | None
    images_per_second: float
    """Of the training steps alone, over the whole run."""
    teacher_forwards: int
    resumed_from_epoch: int


class Trainer:
    """Trains a model on a loader's batches.

    Writes to `run_dir`: `last.safetensors` and `best.safetensors` (weights), `resume.safetensors`
    (everything to go on with), `metrics.jsonl` (one line an epoch).

    Args:
        model: on its device.
        loader: of training batches; with rows it distils, without it learns the labels.
        evaluator: of the evaluation split, or None where there is none.
        settings: of the loop.
        normalise: uint8 pixels to the model's input, on the device.
        run_dir: existing folder.
        about: what the weights files say of themselves.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: DistillLoader,
        evaluator: Evaluator | None,
        settings: TrainSettings,
        *,
        normalise: Normalise,
        run_dir: Path,
        about: dict[str, Any],
    ) -> None:
        self._model = model
        self._loader = loader
        self._evaluator = evaluator
        self._settings = settings
        self._normalise = normalise
        self._run_dir = run_dir
        self._about = about
        self._device = loader.device
        self._reshaping = None
        if settings.reshape:
            if loader.store is None:
                raise ConfigError("reshape is on without a store, expected a teacher's logits")
            constants = torch.from_numpy(loader.store.reshaping_constants())
            self._reshaping = constants.float().to(self._device)
        self._optimizer = make_optimizer(model, lr=settings.lr)
        self._schedule = make_schedule(
            self._optimizer, lr=settings.lr, steps=settings.epochs * len(loader)
        )
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=settings.precision == "fp16")
        self._checkpoint = Checkpoint(
            run_dir / "resume.safetensors",
            model,
            self._optimizer,
            self._schedule,
            self._scaler,
        )

    def run(self, *, resume: bool) -> TrainResult:
        """Train to the last epoch, from the first or from the last checkpoint.

        Raises:
            TrainingError: if the loss is not finite.
        """
        progress = Progress(0, None, 0, 0.0, 0)
        if resume and self._checkpoint.exists():
            progress = self._checkpoint.load()
        resumed_from = progress.epochs_done
        self._keep_metrics(resumed_from)
        accuracy: Accuracy | None = None
        for epoch in range(resumed_from, self._settings.epochs):
            with ForeignForwardCounter(self._model, self._normalise) as counter:
                metrics = self.train_epoch(epoch)
                if self._evaluator is not None:
                    accuracy = self._evaluator(self._model)
            best = progress.top1_best
            is_best = accuracy is not None and (best is None or accuracy.top1 > best)
            progress = Progress(
                epochs_done=epoch + 1,
                top1_best=accuracy.top1 if accuracy and is_best else best,
                images_seen=progress.images_seen + metrics["images"],
                train_seconds=progress.train_seconds + metrics["seconds"],
                teacher_forwards=progress.teacher_forwards + counter.images,
            )
            # Before the checkpoint: a line of an epoch that was not saved is dropped on resume.
            self._report(epoch, metrics, accuracy)
            self._save(progress, is_best=is_best)
        if accuracy is None and self._evaluator is not None:
            accuracy = self._evaluator(self._model)
        return TrainResult(
            last=accuracy,
            top1_best=progress.top1_best,
            images_per_second=progress.images_seen / max(progress.train_seconds, 1e-9),
            teacher_forwards=progress.teacher_forwards,
            resumed_from_epoch=resumed_from,
        )

    def train_epoch(self, epoch: int) -> dict[str, Any]:
        """Train on every batch of one epoch, counted from 0; return its mean loss and its speed.

        Raises:
            TrainingError: if the loss is not finite.
        """
        self._model.train()
        totals = torch.zeros(3, device=self._device)
        images = 0
        lr = 0.0
        started = time.perf_counter()
        total = len(self._loader.sample_ids)
        with (
            matmul_precision(self._settings.precision),
            progress_bar(
                total=total,
                unit="image",
                description=f"epoch {epoch + 1}/{self._settings.epochs}",
            ) as bar,
        ):
            for batch in self._loader.epoch(epoch):
                lr = float(self._schedule.get_last_lr()[0])
                parts = self._step(batch)
                size = len(batch.labels)
                totals += size * _as_vector(parts)
                images += size
                bar.update(size)
        loss, cross_entropy, distillation = (totals / images).tolist()
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss of epoch {epoch + 1} is {loss}, expected a finite number. "
                f"Try a smaller --lr than {self._settings.lr:g}, or --precision fp32"
            )
        return {
            "loss": loss,
            "cross_entropy": cross_entropy,
            "distillation": distillation if self._loader.store else None,
            "lr": lr,
            "images": images,
            "seconds": time.perf_counter() - started,
        }

    def _step(self, batch: Batch) -> LossParts:
        images = self._normalise(batch.images)
        with autocast(self._device, self._settings.precision):
            student = self._model(images)
        student = student.float()
        if batch.rows is None:
            parts = label_loss(student, batch.labels)
        else:
            teacher = batch.rows.logits(self._settings.temperature)
            if self._reshaping is not None:
                teacher = reshape_logits(teacher, batch.labels, self._reshaping)
            parts = distillation_loss(
                student,
                teacher,
                batch.labels,
                temperature=self._settings.temperature,
                alpha=self._settings.alpha,
            )
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(parts.total).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._schedule.step()
        return parts

    def _save(self, progress: Progress, *, is_best: bool) -> None:
        weights = self._model.state_dict()
        about = self._about | {"epoch": progress.epochs_done}
        save_weights(self._run_dir / "last.safetensors", weights, about)
        if is_best:
            save_weights(self._run_dir / "best.safetensors", weights, about)
        # Last: with it the epoch is done, and the others are there.
        self._checkpoint.save(progress)

    def _report(self, epoch: int, metrics: dict[str, Any], accuracy: Accuracy | None) -> None:
        line = {
            "epoch": epoch + 1,
            "loss": metrics["loss"],
            "cross_entropy": metrics["cross_entropy"],
            "distillation": metrics["distillation"],
            "top1": accuracy.top1 if accuracy else None,
            "top5": accuracy.top5 if accuracy else None,
            "lr": metrics["lr"],
            "images_per_second": metrics["images"] / metrics["seconds"],
            "seconds": metrics["seconds"],
        }
        with self._metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        logger.info(
            "epoch %d/%d: loss %.4f%s, %.0f images/s",
            epoch + 1,
            self._settings.epochs,
            metrics["loss"],
            f", top-1 {accuracy.top1:.2f} %" if accuracy else "",
            line["images_per_second"],
        )

    @property
    def _metrics_path(self) -> Path:
        return self._run_dir / "metrics.jsonl"

    def _keep_metrics(self, epochs: int) -> None:
        """Drop the lines of epochs that are to be trained again."""
        if not self._metrics_path.exists():
            return
        lines = self._metrics_path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [
            line for line in lines if line.endswith("\n") and json.loads(line)["epoch"] <= epochs
        ]
        with replace_atomically(self._metrics_path) as partial:
            partial.write_text("".join(kept), encoding="utf-8")


def _as_vector(parts: LossParts) -> Tensor:
    distillation = parts.distillation
    zero = torch.zeros_like(parts.total)
    values = (parts.total, parts.cross_entropy, zero if distillation is None else distillation)
    return torch.stack(values).detach()
