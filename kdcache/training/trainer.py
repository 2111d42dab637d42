"""The training loop of students and teachers."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from kdcache.compute.figures import Quality
from kdcache.compute.normalize import Normalise
from kdcache.compute.precision import autocast, matmul_precision
from kdcache.errors import ConfigError
from kdcache.loader.batch import Batch
from kdcache.loader.distill import DistillLoader
from kdcache.options import Precision
from kdcache.progress import logger, progress_bar
from kdcache.training.averaging import WeightAverage
from kdcache.training.checkpoint import CHECKPOINT, Checkpoint, Progress
from kdcache.training.evaluator import Evaluator
from kdcache.training.finite import FiniteWatch
from kdcache.training.forwards import ForeignForwardCounter
from kdcache.training.losses.loss import Loss
from kdcache.training.losses.settings import LossSettings
from kdcache.training.losses.terms import LossTerms
from kdcache.training.metrics import MetricsLog
from kdcache.training.optim import OptimSettings, make_optimizer
from kdcache.training.saving import early_weights, explain_write_errors, save_epoch
from kdcache.training.schedule import make_schedule


@dataclass(frozen=True, kw_only=True)
class TrainSettings(OptimSettings):
    """The settings of the loop."""

    epochs: int
    steps: int | None = None
    """Optimiser steps of the whole run, which may end within an epoch; None for whole epochs."""
    loss: LossSettings = field(default_factory=LossSettings)
    precision: Precision
    accumulate: int = 1
    """Batches per optimiser step; the loss of a step is the mean over all its samples."""
    clip_norm: float | None = None
    """Maximum norm of a step's gradient; None for no clipping."""
    ema: float | None = None
    """Decay of the average of the weights; None for no average."""
    compile: bool = False
    eval_every: int = 1
    """Epochs from one evaluation to the next; the last epoch is always evaluated."""


class Evaluation(NamedTuple):
    """The result of an evaluation; None without an evaluation split."""

    present: Quality | None
    """Quality of the current weights."""
    average: Quality | None
    """Quality of their average; None without an average."""


class LoopResult(NamedTuple):
    """The result of a run."""

    last: Quality | None
    """Quality of the weights after the last epoch; None without an evaluation split."""
    top1_best: float | None
    ema: Quality | None
    """Quality of the average after the last epoch; None without an average."""
    images_per_second: float
    """Speed of the training steps over the whole run, without evaluations."""
    teacher_forwards: int
    student_forwards: int
    """Images of the training steps, over the whole run; those of evaluations are not counted."""
    steps: int
    """Optimiser steps of the whole run."""
    resumed_from_epoch: int


class Trainer:
    """Trains a model on a loader's batches.

    Writes to `run_dir`: `last.safetensors`, `best.safetensors` (of the highest top-1) and
    `ema.safetensors` (weights), `resume.safetensors` (everything that a resumed run needs) and
    `metrics.jsonl` (one line per epoch).

    Args:
        model: on its device.
        loader: training batches; without rows, the model learns from labels only.
        evaluator: measures the evaluation split; None without one.
        settings: settings of the loop.
        normalise: uint8 pixels to the model's input, on the device.
        run_dir: existing folder.
        about: metadata of the weights files.
        tensorboard: also write TensorBoard events to the run folder.
        save_epochs: epochs, counted from 1, whose weights are kept; see `early_weights`.
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
        tensorboard: bool = False,
        save_epochs: Sequence[int] = (),
    ) -> None:
        self._save_epochs = frozenset(save_epochs)
        self._model = model
        self._loader = loader
        self._evaluator = evaluator
        self._settings = settings
        self._normalise = normalise
        self._run_dir = run_dir
        self._about = about
        self._tensorboard = tensorboard
        self._device = loader.device
        constants_C = None
        if settings.loss.reshape:
            if loader.store is None:
                raise ConfigError("reshape is on without a store, expected a teacher's logits")
            constants = torch.from_numpy(loader.store.reshaping_constants())
            constants_C = constants.float().to(self._device)
        self._loss = Loss(settings.loss, constants_C, model)
        # The user's own loss may have parameters. They are trained with the model's.
        self._trained = [model]
        if settings.compile and settings.loss.needs_features:
            raise ConfigError(
                "--compile is given with a --loss that needs the student's features, expected only "
                "one of them: a compiled model does not return its features. Leave --compile out",
                parameter="compile",
                value=True,
            )
        if self._loss.module is not None:
            self._trained.append(self._loss.module.to(self._device))
        # Compile the method: a compiled module would add a prefix to the name of every weight.
        self._forward = torch.compile(model.forward) if settings.compile else model
        self._batch_weights = _compute_batch_weights(loader.batch_sizes, settings.accumulate)
        self._steps_per_epoch = -(-len(self._batch_weights) // settings.accumulate)
        self._steps = settings.steps or settings.epochs * self._steps_per_epoch
        self._optimizer = make_optimizer(
            nn.ModuleList(self._trained) if len(self._trained) > 1 else model, settings
        )
        self._schedule = make_schedule(self._optimizer, settings, steps=self._steps)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=settings.precision == "fp16")
        self._average = None if settings.ema is None else WeightAverage(model, settings.ema)
        self._checkpoint = Checkpoint(
            run_dir / CHECKPOINT,
            model,
            self._optimizer,
            self._schedule,
            self._scaler,
            self._average,
            about,
            loss=self._loss.module,
        )

    def run(self, *, resume: bool) -> LoopResult:
        """Train to the last epoch, from the first or from the last checkpoint.

        Raises:
            TrainingError: if a loss is NaN or infinite, or the run folder cannot be written.
            CacheMismatchError: if the checkpoint belongs to another run.
        """
        progress = Progress(0, None, 0, 0.0, 0)
        if resume and self._checkpoint.exists():
            progress = self._checkpoint.load()
        resumed_from = progress.epochs_done
        found = Evaluation(None, None)
        own = [self._model, *([self._average.model] if self._average else [])]
        with (
            # One counter for all epochs: new hooks would trigger a recompilation.
            ForeignForwardCounter(*own) as counter,
            MetricsLog(
                self._run_dir, epochs_done=resumed_from, tensorboard=self._tensorboard
            ) as log,
        ):
            forwards_before = progress.teacher_forwards
            for epoch in range(resumed_from, self._settings.epochs):
                trained = self.train_epoch(epoch)
                found = self._evaluate() if self._is_evaluated(epoch) else Evaluation(None, None)
                top1, best = found.present and found.present.top1, progress.top1_best
                is_best = top1 is not None and (best is None or top1 > best)
                progress = Progress(
                    epochs_done=epoch + 1,
                    top1_best=top1 if is_best else best,
                    images_seen=progress.images_seen + trained["images"],
                    train_seconds=progress.train_seconds + trained["seconds"],
                    teacher_forwards=forwards_before + counter.images,
                )
                with explain_write_errors(self._run_dir, epoch):
                    self._report(log, epoch, trained, found)
                    save_epoch(
                        self._run_dir,
                        self._model,
                        self._average,
                        is_best=is_best,
                        keep_as=early_weights(self._run_dir, epoch + 1)
                        if epoch + 1 in self._save_epochs
                        else None,
                        about=self._about | {"epoch": epoch + 1},
                    )
                    # Last: this file marks the epoch as done; without it, its line is dropped.
                    self._checkpoint.save(progress)
        if resumed_from == self._settings.epochs:
            found = self._evaluate()
        return LoopResult(
            last=found.present,
            top1_best=progress.top1_best,
            ema=found.average,
            images_per_second=progress.images_seen / max(progress.train_seconds, 1e-9),
            teacher_forwards=progress.teacher_forwards,
            student_forwards=progress.images_seen,
            steps=self._steps,
            resumed_from_epoch=resumed_from,
        )

    def train_epoch(self, epoch: int) -> dict[str, Any]:
        """Train on every batch of one epoch, counted from 0; return its mean loss and its speed.

        Raises:
            TrainingError: if a loss is NaN or infinite; names the step and its samples.
        """
        self._model.train()
        self._optimizer.zero_grad(set_to_none=True)
        accumulate = self._settings.accumulate
        step = epoch * self._steps_per_epoch
        batches_left = (self._steps - step) * accumulate
        watch = FiniteWatch(
            self._device,
            f"Try a smaller --lr than {self._settings.lr:g}, --clip-norm, or --precision fp32",
        )
        totals = torch.zeros(3, device=self._device)
        images = 0
        lr = 0.0
        started = time.perf_counter()
        with (
            matmul_precision(self._settings.precision),
            progress_bar(
                total=len(self._loader.sample_ids),
                unit="image",
                description=f"epoch {epoch + 1}/{self._settings.epochs}",
            ) as bar,
            closing(self._loader.epoch(epoch)) as batches,  # type: ignore[type-var]
        ):
            for number, batch in enumerate(islice(batches, batches_left)):
                parts = self._step(batch, epoch, number, step)
                watch.add(step + 1, parts.total, batch.sample_ids)
                size = len(batch.labels)
                totals += size * _as_vector(parts)
                images += size
                bar.update(size)
                if (number + 1) % accumulate == 0 or number + 1 == len(self._batch_weights):
                    lr = float(self._schedule.get_last_lr()[0])
                    self._update()
                    step += 1
            watch.check()
        loss, cross_entropy, distillation = (totals / images).tolist()
        return {
            "loss": loss,
            "cross_entropy": cross_entropy,
            "distillation": distillation if parts.distillation is not None else None,
            "alpha": parts.alpha,
            "lr": lr,
            "images": images,
            "seconds": time.perf_counter() - started,
        }

    def _step(self, batch: Batch, epoch: int, number: int, step: int) -> LossTerms:
        """Add a batch's gradient, weighted by its fraction of the optimiser step's samples."""
        images = self._normalise(batch.images)
        mix = None
        if self._settings.loss.mixer is not None:
            mix = self._settings.loss.mixer.draw(images, epoch=epoch, batch=number)
            images = mix.images(images)
        with autocast(self._device, self._settings.precision):
            student = self._forward(images)
        progress = step / max(self._steps - 1, 1)
        parts = self._loss(student, batch.rows, batch.labels, progress=progress, mix=mix)
        self._scaler.scale(self._batch_weights[number] * parts.total).backward()
        return parts

    def _update(self) -> None:
        """Take an optimiser step with the accumulated gradients."""
        if self._settings.clip_norm is not None:
            self._scaler.unscale_(self._optimizer)
            parameters = chain.from_iterable(module.parameters() for module in self._trained)
            nn.utils.clip_grad_norm_(parameters, self._settings.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        with warnings.catch_warnings() if self._scaler.is_enabled() else nullcontext():
            if self._scaler.is_enabled():
                # The scaler skips a first step whose gradients overflow, as it should.
                warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            self._schedule.step()
        if self._average:
            self._average.update(self._model)

    def _is_evaluated(self, epoch: int) -> bool:
        is_last = epoch + 1 == self._settings.epochs
        return is_last or (epoch + 1) % self._settings.eval_every == 0

    def _evaluate(self) -> Evaluation:
        if self._evaluator is None:
            return Evaluation(None, None)
        average = self._evaluator(self._average.model) if self._average else None
        return Evaluation(self._evaluator(self._model), average)

    def _report(
        self, log: MetricsLog, epoch: int, trained: dict[str, Any], found: Evaluation
    ) -> None:
        line = {
            "epoch": epoch + 1,
            "loss": trained["loss"],
            "cross_entropy": trained["cross_entropy"],
            "distillation": trained["distillation"],
            "alpha": trained["alpha"],
            "top1": found.present and found.present.top1,
            "top5": found.present and found.present.top5,
            "lr": trained["lr"],
            "images_per_second": trained["images"] / trained["seconds"],
            "seconds": trained["seconds"],
        }
        if self._average:
            line["top1_ema"] = found.average and found.average.top1
        log.write(line)
        logger.info(
            "epoch %d/%d: loss %.4f%s%s, %.0f images/s",
            epoch + 1,
            self._settings.epochs,
            trained["loss"],
            f", top-1 {found.present.top1:.2f} %" if found.present else "",
            f", of the average {found.average.top1:.2f} %" if found.average else "",
            line["images_per_second"],
        )


def _compute_batch_weights(batch_sizes: npt.NDArray[np.int64], accumulate: int) -> list[float]:
    """Return each batch's fraction of the samples of its optimiser step, in (0, 1]."""
    steps = np.arange(len(batch_sizes)) // accumulate
    samples = np.bincount(steps, weights=batch_sizes)
    shares: list[float] = (batch_sizes / samples[steps]).tolist()
    return shares


def _as_vector(parts: LossTerms) -> Tensor:
    distillation = parts.distillation
    zero = torch.zeros_like(parts.total)
    values = (parts.total, parts.cross_entropy, zero if distillation is None else distillation)
    return torch.stack(values).detach()
