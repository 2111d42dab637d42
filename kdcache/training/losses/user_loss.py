"""Users' losses: `--loss module:name`.

A loss is a function `loss(student (B, C), teacher (B, C), labels (B,), context) -> scalar or (B,)`
of float32 logits, or a class whose instances are called in the same way. The class is constructed
with `num_classes` and `num_features`. If it is a `torch.nn.Module`, its parameters are trained,
saved in checkpoints, and restored when a run resumes. If the function or class has an attribute
`needs_features = True`, `context.features` has the student's features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from kdcache.errors import ConfigError
from kdcache.registry import load_user_code, user_code_digest
from kdcache.training.losses.method import Method


class LossContext(NamedTuple):
    """What a loss may use in addition to logits and labels."""

    temperature: float
    """T of the run, above 0. The logits are not divided by it."""
    progress: float
    """Point of the run: 0 at its first step, 1 at its last."""
    features: Tensor | None
    """(B, F) float32 input of the student's last linear layer, with its gradient; None unless the
    loss has `needs_features = True`."""


LossFunction = Callable[[Tensor, Tensor, Tensor, LossContext], Tensor]


@dataclass(frozen=True)
class UserLoss(Method):
    """A user's loss."""

    import_path: str
    """`module:name`."""
    code: Callable[..., Any]
    """The function or class."""

    name: ClassVar[str] = "module:name"
    default_alpha: ClassVar[float] = 0.5
    takes_mixed: ClassVar[bool] = False
    takes_standardised: ClassVar[bool] = True

    @classmethod
    def load(cls, import_path: str) -> UserLoss:
        """Import a loss.

        Raises:
            ConfigError: if it cannot be imported.
        """
        return cls(import_path, load_user_code(import_path, option="loss"))

    def __str__(self) -> str:
        return self.import_path

    @property
    def code_digest(self) -> str:
        """The sha256 of the file that defines the loss, in hex."""
        return user_code_digest(self.import_path)

    @property
    def needs_features(self) -> bool:
        """True if the loss needs the student's features."""
        return bool(getattr(self.code, "needs_features", False))

    def make(self, model: nn.Module | None) -> LossFunction:
        """Return the function, or an instance of the class for a student.

        Raises:
            ConfigError: if the loss is a class and the student has no linear layer.
        """
        if not isinstance(self.code, type):
            return self.code
        head = last_linear(model, self.import_path)
        made: LossFunction = self.code(num_classes=head.out_features, num_features=head.in_features)
        return made

    def __call__(
        self, log_student_BC: Tensor, log_teacher_BC: Tensor, labels_B: Tensor, temperature: float
    ) -> Tensor:
        """Raise NotImplementedError; `Loss` calls what `make` returns instead."""
        raise NotImplementedError


def require_loss(import_path: str, found: object, student_BC: Tensor) -> Tensor:
    """Check the value that a user's loss returned, and return it as float32.

    Args:
        import_path: `module:name` of the loss.
        found: what it returned.
        student_BC: (B, C) student logits that it was given.

    Raises:
        ConfigError: if it is neither a scalar nor of shape (B,), or has no gradient although the
            logits have one.
    """
    batch_size = len(student_BC)
    if not isinstance(found, Tensor) or tuple(found.shape) not in {(), (batch_size,)}:
        shown = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ConfigError(
            f"--loss {import_path} returned {shown}, expected a tensor of shape () or "
            f"({batch_size},): one number, or one per sample",
            parameter="loss",
            value=import_path,
        )
    if student_BC.requires_grad and not found.requires_grad:
        raise ConfigError(
            f"--loss {import_path} returned a tensor without a gradient, expected one that depends "
            "on the student's logits. Do not detach them; for no loss, return 0 * student.sum()",
            parameter="loss",
            value=import_path,
        )
    return found.float()


def last_linear(model: nn.Module | None, import_path: str) -> nn.Linear:
    """Return the last linear layer of a student.

    Raises:
        ConfigError: if the student has no linear layer.
    """
    layers = [] if model is None else [m for m in model.modules() if isinstance(m, nn.Linear)]
    if not layers:
        raise ConfigError(
            parameter="loss",
            value=import_path,
            problem=(
                "it needs the student's features, expected a student with a linear layer at its end"
            ),
            remedy="Choose another --model",
        )
    return layers[-1]


class FeatureHook:
    """Saves the input of the student's last linear layer in each training step."""

    def __init__(self, model: nn.Module | None, import_path: str) -> None:
        self._kept: list[Tensor] = []
        kept = self._kept

        # A closure and not a bound method, so that a deep copy of the model (for the weight
        # average) shares the list.
        def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if module.training:
                kept[:] = [inputs[0]]

        last_linear(model, import_path).register_forward_pre_hook(keep)

    def take(self) -> Tensor:
        """Return the features of the last forward pass, (B, F) float32, and release them."""
        return self._kept.pop().float()
