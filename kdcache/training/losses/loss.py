"""The loss of a run: cross-entropy with the labels, and distillation from the teacher's rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdcache.errors import ConfigError
from kdcache.loader.staging import Rows
from kdcache.store.codecs.dense import Float32
from kdcache.training.losses.alpha import Alpha
from kdcache.training.losses.hinton import Kd
from kdcache.training.losses.mix import Mix
from kdcache.training.losses.reshape import reshape_logits
from kdcache.training.losses.settings import LossSettings
from kdcache.training.losses.sparse import MIN_CLASSES, sparse_divergence
from kdcache.training.losses.standardise import standardise
from kdcache.training.losses.terms import LossTerms
from kdcache.training.losses.user_loss import (
    FeatureHook,
    LossContext,
    LossFunction,
    UserLoss,
    require_loss,
)


class Loss:
    """(1 - alpha) cross-entropy + alpha distillation.

    Args:
        settings: the settings of the run.
        constants_C: (C,) constants of MDSLR's reshaping, on the device of the logits; required if
            `settings.reshape` is True.
        model: the student; required if a user's loss is a class or uses the student's features.
    """

    def __init__(
        self,
        settings: LossSettings,
        constants_C: Tensor | None = None,
        model: nn.Module | None = None,
    ) -> None:
        self.settings = settings
        self._constants_C = constants_C
        self._function: LossFunction | None = None
        self._features: FeatureHook | None = None
        if isinstance(settings.method, UserLoss):
            self._function = settings.method.make(model)
            if settings.method.needs_features:
                self._features = FeatureHook(model, settings.method.import_path)

    @property
    def module(self) -> nn.Module | None:
        """The user's loss if it is a module, which may have parameters; otherwise None."""
        return self._function if isinstance(self._function, nn.Module) else None

    def __call__(
        self,
        student_BC: Tensor,
        rows: Rows | None,
        labels_B: Tensor,
        *,
        progress: float,
        mix: Mix | None = None,
    ) -> LossTerms:
        """Return the loss of a batch.

        Args:
            student_BC: (B, C) float logits; float16 and bfloat16 are converted to float32.
            rows: the teacher's rows of the images before mixing; None: train on labels only.
            labels_B: (B,) int64 in [0, C), the labels before mixing.
            progress: point of the run: 0 at the first step, 1 at the last.
            mix: how the images were mixed; None: they were not.
        """
        if student_BC.dtype in {torch.float16, torch.bfloat16}:
            student_BC = student_BC.float()
        alpha = 0.0 if rows is None else self.settings.alpha.at(progress)
        with torch.set_grad_enabled(alpha < 1 and torch.is_grad_enabled()):
            cross_entropy_B = self._cross_entropy(student_BC, labels_B, mix)
        cross_entropy = cross_entropy_B.mean()
        if rows is None:
            return LossTerms(cross_entropy, cross_entropy, None, cross_entropy_B)
        distillation = self._distillation(student_BC, rows, labels_B, mix, progress)
        weight = alpha * self.settings.method.ramp(progress)
        per_sample = None
        if distillation.ndim:
            per_sample = _weighted(1 - alpha, cross_entropy_B, weight, distillation)
            distillation = distillation.mean()
        total = _weighted(1 - alpha, cross_entropy, weight, distillation)
        return LossTerms(total, cross_entropy, distillation, per_sample, alpha)

    def _cross_entropy(self, student_BC: Tensor, labels_B: Tensor, mix: Mix | None) -> Tensor:
        def with_labels(target_B: Tensor) -> Tensor:
            return functional.cross_entropy(
                student_BC,
                target_B,
                label_smoothing=self.settings.label_smoothing,
                reduction="none",
            )

        own_B = with_labels(labels_B)
        if mix is None:
            return own_B
        return torch.lerp(with_labels(labels_B[mix.partners]), own_B, mix.share)

    def _distillation(
        self,
        student_BC: Tensor,
        rows: Rows,
        labels_B: Tensor,
        mix: Mix | None,
        progress: float,
    ) -> Tensor:
        settings = self.settings
        temperature = settings.temperature
        is_plain = isinstance(settings.method, Kd) and not (
            settings.reshape or settings.standardise
        )
        if is_plain and mix is None and student_BC.shape[1] >= MIN_CLASSES:
            sparse = rows.codec.sparse(rows.encoded, temperature=temperature)
            if sparse is not None:
                return temperature**2 * sparse_divergence(student_BC, sparse, temperature)
        teacher_BC = rows.logits(temperature).to(student_BC.dtype)
        if settings.reshape:
            assert self._constants_C is not None  # noqa: S101  (reshape requires them)
            teacher_BC = reshape_logits(teacher_BC, labels_B, self._constants_C)
        if settings.standardise:
            student_BC, teacher_BC = standardise(student_BC), standardise(teacher_BC)
        if isinstance(settings.method, UserLoss):
            assert self._function is not None  # noqa: S101  (__init__ made it)
            features = self._features.take() if self._features else None
            context = LossContext(temperature, progress, features)
            found = self._function(student_BC, teacher_BC, labels_B, context)
            return require_loss(settings.method.import_path, found, student_BC)
        log_teacher_BC = functional.log_softmax(teacher_BC / temperature, dim=1)
        if mix is not None:
            log_teacher_BC = mix.log_probabilities(log_teacher_BC)
        log_student_BC = functional.log_softmax(student_BC / temperature, dim=1)
        return settings.method(log_student_BC, log_teacher_BC, labels_B, temperature)


def distillation_loss(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    *,
    temperature: float,
    alpha: float,
) -> LossTerms:
    """Return (1 - alpha) cross-entropy + alpha T^2 KL(teacher_T || student_T).

    This function is for training loops other than kdcache's.

    Args:
        student_BC: (B, C) float logits.
        teacher_BC: (B, C) float logits; adding a constant to a row changes nothing.
        labels_B: (B,) int64 in [0, C).
        temperature: T, above 0.
        alpha: weight of the distillation loss, in [0, 1].

    Raises:
        ConfigError: if a number is out of its range, or the shapes differ.
    """
    if teacher_BC.shape != student_BC.shape:  # torch would broadcast (1, C) and (B, 1)
        raise ConfigError(
            parameter="teacher_BC",
            value=tuple(teacher_BC.shape),
            rule=f"the shape of student_BC, {tuple(student_BC.shape)}",
        )
    settings = LossSettings(alpha=Alpha.parse(alpha), temperature=temperature)
    rows = Rows(teacher_BC, Float32(teacher_BC.shape[1]))
    return Loss(settings)(student_BC, rows, labels_B, progress=0.0)


def _weighted(first_weight: float, first: Tensor, second_weight: float, second: Tensor) -> Tensor:
    """Return a weighted sum; a term with weight 0 is left out, even if it is infinite."""
    if first_weight == 0:
        return second_weight * second
    if second_weight == 0:
        return first_weight * first
    return first_weight * first + second_weight * second
