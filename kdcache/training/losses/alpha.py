"""The weight of the distillation loss: a constant, a schedule, or a function of `keep`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from kdcache.errors import ConfigError
from kdcache.training.losses.form import format_number, parse_form

AUTO_RULE = "1 - keep / 2"
"""The rule of `auto`, a placeholder: alpha falls linearly from 1 (almost nothing kept) to 0.5 (all
data). Ben-Baruch et al. 2025, "Distilling the Knowledge in Data Pruning", find that the teacher
should weigh more if less is kept, but their weights are not published."""

_FORMS: dict[str, dict[str, float | None]] = {
    "": {},
    "linear": {"start": None, "end": None},
    "cosine": {"start": None, "end": None},
    "auto": {},
}


@dataclass(frozen=True)
class Alpha:
    """The weight alpha of the distillation loss over a run. `Alpha.parse` reads what `str` writes.

    0.9                 constant
    linear(0.9, 0.5)    linear schedule from the first step to the last
    cosine(0.9, 0.5)    half a cosine from the first step to the last
    auto                a constant that depends on `keep`, see `AUTO_RULE` and `for_keep`
    """

    kind: Literal["constant", "linear", "cosine", "auto"]
    start: float = 0.0
    """Weight at the first step, in [0, 1]."""
    end: float = 0.0
    """Weight at the last step, in [0, 1]."""

    def __post_init__(self) -> None:
        """Check the range of both weights."""
        for value in (self.start, self.end):
            if not 0 <= value <= 1:
                raise ConfigError(parameter="alpha", value=value, rule="a number in [0, 1]")

    @classmethod
    def parse(cls, text: str | float) -> Alpha:
        """Parse a weight.

        Raises:
            ConfigError: if the text has another form (the message names the first wrong
                character), or a weight is out of range.
        """
        if isinstance(text, (int, float)):
            return cls("constant", float(text), float(text))
        name, numbers = parse_form(text, _FORMS, option="alpha")
        match name:
            case "linear" | "cosine":
                return cls(name, numbers["start"], numbers["end"])
            case "auto":
                return cls("auto")
        return cls("constant", numbers["value"], numbers["value"])

    def __str__(self) -> str:
        match self.kind:
            case "constant":
                return format_number(self.start)
            case "auto":
                return "auto"
        return f"{self.kind}({format_number(self.start)}, {format_number(self.end)})"

    def for_keep(self, keep: float) -> Alpha:
        """Return the constant of `auto` for `keep` in (0, 1]; other weights stay unchanged."""
        if self.kind != "auto":
            return self
        value = 1 - keep / 2
        return Alpha("constant", value, value)

    def at(self, progress: float) -> float:
        """Return the weight at a point of the run.

        Args:
            progress: in [0, 1]; 0 is the first step, 1 the last.

        Raises:
            ConfigError: if it is `auto`; call `for_keep` first.
        """
        match self.kind:
            case "constant":
                return self.start
            case "linear":
                fraction = progress
            case "cosine":
                fraction = (1 - math.cos(math.pi * progress)) / 2
            case "auto":
                raise ConfigError(parameter="alpha", value="auto", rule="a weight for a known keep")
        return (1 - fraction) * self.start + fraction * self.end
