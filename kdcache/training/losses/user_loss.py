"""Losses of the user's own: `--loss module:name`.

A loss is `loss(student (B, C), teacher (B, C), labels (B,), context) -> scalar or (B,)`, from
float32 logits. `name` is such a function, or a class that is constructed with `num_classes` and
`num_features` and called in the same way. A class that is a `torch.nn.Module` may own parameters:
the optimiser trains them, checkpoints save them, and a resumed run takes them up. With an attribute
`needs_features = True` on the function or class, `context.features` holds the student's features.
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
    """What a loss may use beside logits and labels."""

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
    """A loss that kdcache does not know."""

    place: str
    """`module:name`."""
    code: Callable[..., Any]
    """The function or class."""

    name: ClassVar[str] = "module:name"
    default_alpha: ClassVar[float] = 0.5
    takes_mixed: ClassVar[bool] = False
    takes_standardised: ClassVar[bool] = True

    @classmethod
    def load(cls, place: str) -> UserLoss:
        """Import a loss.

        Raises:
            ConfigError: if there is none.
        """
        return cls(place, load_user_code(place, option="loss"))

    def __str__(self) -> str:
        return self.place

    @property
    def code_digest(self) -> str:
        """Hex sha256 of the file that defines it."""
        return user_code_digest(self.place)

    @property
    def needs_features(self) -> bool:
        """True if it asks for the student's features."""
        return bool(getattr(self.code, "needs_features", False))

    def make(self, model: nn.Module | None) -> LossFunction:
        """Return the function, or an instance of the class for a student.

        Raises:
            ConfigError: if a class or the features are asked for and the student has no linear
                layer.
        """
        if not isinstance(self.code, type):
            return self.code
        head = last_linear(model, self.place)
        made: LossFunction = self.code(num_classes=head.out_features, num_features=head.in_features)
        return made

    def __call__(
        self, log_student_BC: Tensor, log_teacher_BC: Tensor, labels_B: Tensor, temperature: float
    ) -> Tensor:
        """Not used: `Loss` calls what `make` returns, with logits."""
        raise NotImplementedError


def require_loss(place: str, found: object, batch_size: int) -> Tensor:
    """Return what a loss of the user's own returned, checked.

    Raises:
        ConfigError: if it is neither one number nor one per sample.
    """
    if not isinstance(found, Tensor) or tuple(found.shape) not in {(), (batch_size,)}:
        shown = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ConfigError(
            f"--loss {place} returned {shown}, expected a tensor of shape () or ({batch_size},): "
            "one number, or one per sample",
            parameter="loss",
            value=place,
        )
    return found.float()


def last_linear(model: nn.Module | None, place: str) -> nn.Linear:
    """Return the last linear layer of a student.

    Raises:
        ConfigError: if it has none.
    """
    layers = [] if model is None else [m for m in model.modules() if isinstance(m, nn.Linear)]
    if not layers:
        raise ConfigError(
            f"--loss is {place}, which needs the student's features, expected a student with a "
            "linear layer at its end. Choose another --model",
            parameter="loss",
            value=place,
        )
    return layers[-1]


class FeatureHook:
    """Keeps the input of a student's last linear layer in each training step."""

    def __init__(self, model: nn.Module | None, place: str) -> None:
        self._kept: list[Tensor] = []
        kept = self._kept

        # A plain function, which the copy of the model for the average shares.
        def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if module.training:
                kept[:] = [inputs[0]]

        last_linear(model, place).register_forward_pre_hook(keep)

    def take(self) -> Tensor:
        """Return the features of the last forward, (B, F) float32, and forget them."""
        return self._kept.pop().float()
