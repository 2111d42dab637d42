"""How long a cell trains: a number of epochs, a number of steps, or the longer of both.

An epoch is one pass over the kept samples. With equal epochs, a student on 30 % of the data takes
30 % of the steps; with equal steps, it sees each kept sample more often. These are different arms,
and the text of the recipe says which one is meant.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from kdcache.errors import ConfigError

_TERM = r"([\d_,]+) (epochs?|steps?)"
_ONE = re.compile(_TERM)
_LONGER = re.compile(rf"max\({_TERM}, {_TERM}\)")


class TrainingLength(NamedTuple):
    """The length of a training run. At least one field is not None."""

    epochs: int | None
    steps: int | None
    """Optimiser steps; if `epochs` is given too, the longer one counts."""

    @classmethod
    def parse(cls, text: str) -> TrainingLength:
        """Parse `20 epochs`, `2600 steps` or `max(20 epochs, 2600 steps)`.

        Raises:
            ConfigError: if the text has another form.
        """
        match = _ONE.fullmatch(text) or _LONGER.fullmatch(text)
        terms: dict[str, int] = {}
        if match:
            groups = match.groups()
            for count, unit in zip(groups[::2], groups[1::2], strict=True):
                terms[unit.rstrip("s")] = int(re.sub(r"\D", "", count) or 0)
            if len(terms) * 2 == len(groups) and all(terms.values()):
                return cls(terms.get("epoch"), terms.get("step"))
        raise ConfigError(
            f"recipe is {text!r}, expected a length such as '20 epochs' (over the kept samples), "
            "'2600 steps' or 'max(20 epochs, 2600 steps)'"
        )

    @property
    def arm(self) -> str:
        """What this recipe keeps equal between cells: `epochs`, `steps` or `longer`."""
        if self.steps is None:
            return "epochs"
        return "steps" if self.epochs is None else "longer"

    def __str__(self) -> str:
        terms = [f"{self.epochs} epochs"] if self.epochs else []
        terms += [f"{self.steps} steps"] if self.steps else []
        return terms[0] if len(terms) == 1 else f"max({', '.join(terms)})"

    def words(self, *, samples: int, batch_size: int, evaluations: int) -> list[str]:
        """Return the options of `kdcache train` that give this length.

        Args:
            samples: number of kept samples.
            batch_size: samples of a batch; the last batch of an epoch may be smaller.
            evaluations: maximum number of evaluations; the last epoch is always evaluated.
        """
        steps_per_epoch = -(-samples // batch_size)
        if self.steps and self.steps > (self.epochs or 0) * steps_per_epoch:
            epochs, length = -(-self.steps // steps_per_epoch), f"--steps={self.steps}"
        else:
            epochs = self.epochs or 1
            length = f"--epochs={epochs}"
        return [length, f"--eval-every={math.ceil(epochs / evaluations)}"]
