"""What `--codec` can be told: a codec with its parameters, or auto."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Any

from kdcache.errors import ConfigError

AUTO = "auto"

_FORMS: dict[str, dict[str, tuple[type, int]]] = {
    AUTO: {},
    "dense": {},
    "int8": {},
    "topk": {"k": (int, 1)},
    "lowrank": {"k": (int, 1), "r": (int, 1), "fine": (int, 0)},
    "sampled": {"draws": (int, 1), "temperature": (float, 0), "seed": (int, 0)},
    "float32": {},
}
"""The parameters of each codec, with their type and least value (above it, for a float)."""


@dataclass(frozen=True)
class CodecRequest:
    """A codec as it was asked for. What is left out is decided when the logits are known.

    auto                                       the smallest that keeps the gradient
    dense, int8, float32
    topk(k=10)                                 k largest and what the others sum to
    lowrank(k=10, r=64, fine=16)               k largest and r coefficients, so many of them finer
    sampled(draws=50, temperature=1, seed=0)   draws, for one temperature
    """

    name: str
    parameters: dict[str, int | float] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> CodecRequest:
        """Read a codec, such as `auto`, `topk(k=32)` or `sampled(draws=50, temperature=4)`.

        Raises:
            ConfigError: names the forms that are known, or the parameter that is out of range.
        """
        try:
            name, given = _parse(text)
        except (SyntaxError, TypeError, ValueError) as error:
            raise ConfigError(
                f"codec is {text!r}, expected auto, dense, int8, topk(k=10), lowrank(k=10, r=64), "
                "sampled(draws=50, temperature=1, seed=0) or float32"
            ) from error
        for word, value in given.items():
            kind, least = _FORMS[name][word]
            if value < least or (kind is float and not least < value < float("inf")):
                rule = f"above {least}" if kind is float else f"of at least {least}"
                raise ConfigError(f"{word} of {name} is {value}, expected a number {rule}")
        return cls(name, given)

    def __str__(self) -> str:
        """Write the form that `parse` reads."""
        words = ", ".join(f"{word}={value}" for word, value in self.parameters.items())
        return f"{self.name}({words})" if words else self.name


def _parse(text: str) -> tuple[str, dict[str, Any]]:
    tree = ast.parse(text.strip(), mode="eval").body
    call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
    if not isinstance(call.func, ast.Name) or call.args:
        raise TypeError(text)
    said = [(str(word.arg), ast.literal_eval(word.value)) for word in call.keywords]
    form, given = _FORMS.get(call.func.id), dict(said)
    if form is None or not given.keys() <= form.keys() or len(given) < len(said):
        raise ValueError(text)
    for word, value in given.items():
        kind = form[word][0]
        if type(value) is not kind and (kind is int or type(value) is not int):
            raise TypeError(text)
        given[word] = kind(value)
    return call.func.id, given
