"""The settings of a loss, and which of them can be combined."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kdcache.errors import ConfigError
from kdcache.options import TrainOptions
from kdcache.registry import is_user_code
from kdcache.store.codecs.codec import Codec
from kdcache.store.format.location import Location
from kdcache.training.losses.alpha import Alpha
from kdcache.training.losses.form import parse_form
from kdcache.training.losses.hinton import Kd
from kdcache.training.losses.method import Method
from kdcache.training.losses.mix import Mixer
from kdcache.training.losses.registry import LOSSES
from kdcache.training.losses.standardise import DEFAULT_TEMPERATURE as STANDARDISED_TEMPERATURE
from kdcache.training.losses.user_loss import UserLoss

DEFAULT_TEMPERATURE = 4.0
"""The usual temperature of KD on small images."""


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Everything that a loss depends on, except the batch.

    Raises:
        ConfigError: if a value is out of range, or contradicts another.
    """

    method: Method = field(default_factory=Kd)
    alpha: Alpha = field(default_factory=lambda: Alpha.parse(Kd.default_alpha))
    """Weight of the distillation loss."""
    temperature: float = DEFAULT_TEMPERATURE
    """T, above 0. With `standardise`, it multiplies each row's standard deviation."""
    reshape: bool = False
    """Reshape the teacher's logits as MDSLR does, before the temperature."""
    standardise: bool = False
    """Standardise the logits of student and teacher before the temperature."""
    label_smoothing: float = 0.0
    """Label smoothing of the cross-entropy, in [0, 1)."""
    mixer: Mixer | None = None
    """Mixup or CutMix; None: images are not mixed."""

    def __post_init__(self) -> None:
        """Check the values and their combination."""
        method = self.method
        if not 0 < self.temperature < math.inf:
            raise ConfigError(
                parameter="temperature", value=self.temperature, rule="a number above 0"
            )
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(
                parameter="label_smoothing", value=self.label_smoothing, rule="a number in [0, 1)"
            )
        if self.standardise and self.reshape:
            raise ConfigError(
                "--reshape is given with --standardise, expected one of them: --standardise "
                "removes the deviation that --reshape sets",
                parameter="reshape",
                value=True,
            )
        if self.standardise and not method.takes_standardised:
            raise ConfigError(
                f"--standardise is given with --loss {method.name}, expected kd or dkd: "
                "correlations do not depend on the scale of the logits",
                parameter="standardise",
                value=True,
            )
        if self.mixer is not None and not method.takes_mixed:
            raise ConfigError(
                f"--{'cutmix' if self.mixer.mixup is None else 'mixup'} is given with --loss "
                f"{method.name}, expected kd or dist: a mixed image has two labels"
            )
        if self.label_smoothing and self.ignores_labels:
            raise ConfigError(
                f"--label-smoothing is {self.label_smoothing:g} with --alpha {self.alpha}, "
                "expected an alpha below 1: with alpha 1, the labels are not used",
                parameter="label_smoothing",
                value=self.label_smoothing,
            )

    @classmethod
    def of(cls, options: TrainOptions) -> LossSettings:
        """Return the settings that the options of `kdcache train` give."""
        if options.mixup is None and options.cutmix is None:
            mixer = None
        else:
            mixer = Mixer(options.mixup, options.cutmix, options.seed)
        method = parse_method(options.loss)
        temperature = options.temperature
        if temperature is None:
            temperature = STANDARDISED_TEMPERATURE if options.standardise else DEFAULT_TEMPERATURE
        return cls(
            method=method,
            alpha=Alpha.parse(method.default_alpha if options.alpha is None else options.alpha),
            temperature=temperature,
            reshape=options.reshape,
            standardise=options.standardise,
            label_smoothing=options.label_smoothing,
            mixer=mixer,
        )

    @property
    def ignores_labels(self) -> bool:
        """True if alpha is 1 throughout, so that the labels are never used."""
        return self.alpha.kind != "auto" and self.alpha.start == self.alpha.end == 1

    @property
    def needs_features(self) -> bool:
        """True if the loss needs the student's features."""
        return isinstance(self.method, UserLoss) and self.method.needs_features

    @property
    def content(self) -> dict[str, Any]:
        """JSON content that identifies these settings."""
        alpha = self.alpha
        return {
            "loss": str(self.method),
            "alpha": alpha.start if alpha.kind == "constant" else str(alpha),
            "temperature": self.temperature,
            "reshape": self.reshape,
            "standardise": self.standardise,
            "label_smoothing": self.label_smoothing,
            "mixup": self.mixer.mixup if self.mixer else None,
            "cutmix": self.mixer.cutmix if self.mixer else None,
            **(
                {"loss_code_digest": self.method.code_digest}
                if isinstance(self.method, UserLoss)
                else {}
            ),
        }

    def __str__(self) -> str:
        words = [f"{self.method}, alpha {self.alpha}, T {self.temperature:g}"]
        words += [name for name in ("reshape", "standardise") if getattr(self, name)]
        return ", ".join(words + self._label_words())

    def labels_alone(self) -> str:
        """Return the settings that apply without a teacher, as text."""
        return ", ".join(["labels alone", *self._label_words()])

    def for_keep(self, keep: float) -> LossSettings:
        """Return the settings with the constant of `--alpha auto` for `keep` in (0, 1]."""
        return replace(self, alpha=self.alpha.for_keep(keep))

    def require_codec(self, codec: Codec, path: Location) -> None:
        """Check that this loss can use the rows of a store.

        Raises:
            ConfigError: if the rows are `sampled` for another temperature, or the loss is not plain
                KD: sampled probabilities are unbiased, but a function of them that is not linear
                is biased.
        """
        if codec.bound_to is None:
            return
        if codec.bound_to != self.temperature:
            raise ConfigError(
                parameter="temperature",
                value=f"{self.temperature:g}",
                rule=(
                    f"{codec.bound_to:g}: the rows of {path} are {codec}, drawn for "
                    "that temperature only"
                ),
                remedy="Build a store with another --codec to use other temperatures",
            )
        changes = [f"--{name}" for name in ("reshape", "standardise") if getattr(self, name)]
        if changes or not isinstance(self.method, Kd):
            option = changes[0] if changes else f"--loss {self.method.name}"
            raise ConfigError(
                f"{option} is given with {path}, whose rows are {codec}, expected plain --loss kd: "
                "sampled rows are unbiased only for losses that are linear in the probabilities. "
                f"Build a store with another --codec to use {option}"
            )

    def _label_words(self) -> list[str]:
        words = []
        if self.label_smoothing:
            words.append(f"label smoothing {self.label_smoothing:g}")
        if self.mixer is not None:
            kinds = {"mixup": self.mixer.mixup, "cutmix": self.mixer.cutmix}
            words += [f"{name} {value:g}" for name, value in kinds.items() if value is not None]
        return words


def parse_method(text: str) -> Method:
    """Parse a loss, such as `kd`, `dkd(beta=2)`, `dist(beta=2, gamma=2)` or `module:name`.

    Raises:
        ConfigError: if the text has another form (the message names the first wrong character), a
            weight is out of range, or the user's code cannot be imported.
    """
    if is_user_code(text):
        return UserLoss.load(text)
    forms: dict[str, Mapping[str, float | None]] = {
        name: dict(vars(method()).items()) for name, method in LOSSES.items()
    }
    name, numbers = parse_form(text, forms, option="loss")
    made: Method = LOSSES[name](**numbers)
    return made
