"""How much the teacher counts beside the labels: a number, a way, or what is kept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from kdcache.errors import ConfigError
from kdcache.training.losses.form import parse_form, written

AUTO_RULE = "1 - keep / 2"
"""What `auto` stands for until it is measured: a placeholder. That the weight of the teacher grows
as less is kept is Ben-Baruch et al. 2025, "Distilling the Knowledge in Data Pruning"; their weights
are not published, so these are a straight line from 0.5 for all data to 1 for next to none."""

_FORMS: dict[str, dict[str, float | None]] = {
    "": {},
    "linear": {"start": None, "end": None},
    "cosine": {"start": None, "end": None},
    "auto": {},
}


@dataclass(frozen=True)
class Alpha:
    """Weight of the distillation term over a run. `Alpha.parse` reads the form that `str` writes.

    0.9                 throughout
    linear(0.9, 0.5)    from the first to the second, as much in each step
    cosine(0.9, 0.5)    likewise along half a cosine, slow at both ends
    auto                by the share of samples that is kept, see `AUTO_RULE` and `for_keep`
    """

    kind: Literal["constant", "linear", "cosine", "auto"]
    start: float = 0.0
    """At the first step, in [0, 1]."""
    end: float = 0.0
    """At the last, in [0, 1]."""

    def __post_init__(self) -> None:
        """Check both ends."""
        for value in (self.start, self.end):
            if not 0 <= value <= 1:
                raise ConfigError(parameter="alpha", value=value, rule="a number in [0, 1]")

    @classmethod
    def parse(cls, text: str | float) -> Alpha:
        """Read a weight.

        Raises:
            ConfigError: names what was expected at which character, or the range.
        """
        if isinstance(text, (int, float)):
            return cls("constant", float(text), float(text))
        name, numbers = parse_form(text, _FORMS, option="--alpha")
        match name:
            case "linear" | "cosine":
                return cls(name, numbers["start"], numbers["end"])
            case "auto":
                return cls("auto")
        return cls("constant", numbers["value"], numbers["value"])

    def __str__(self) -> str:
        match self.kind:
            case "constant":
                return written(self.start)
            case "auto":
                return "auto"
        return f"{self.kind}({written(self.start)}, {written(self.end)})"

    def for_keep(self, keep: float) -> Alpha:
        """Return what `auto` comes to for a share of samples in (0, 1]; any other stays."""
        if self.kind != "auto":
            return self
        value = 1 - keep / 2
        return Alpha("constant", value, value)

    def at(self, progress: float) -> float:
        """Return the weight at a point of the run: 0 at its first step, 1 at its last.

        Raises:
            ConfigError: of `auto`, which has none before `for_keep`.
        """
        match self.kind:
            case "constant":
                return self.start
            case "linear":
                way = progress
            case "cosine":
                way = (1 - math.cos(math.pi * progress)) / 2
            case "auto":
                raise ConfigError(
                    "--alpha is auto, expected the share that is kept to be known",
                    parameter="alpha",
                    value="auto",
                )
        return (1 - way) * self.start + way * self.end
