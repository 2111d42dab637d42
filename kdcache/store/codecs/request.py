"""What `--codec` can be told: a codec with its parameters, or auto."""

from __future__ import annotations

from dataclasses import dataclass, field

from kdcache.calls import Call, CallError, parse_call, unused_names
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
            ConfigError: names what was expected at which character and the forms that are known,
                or the parameter that is out of range.
        """
        try:
            call = parse_call(text, _FORMS)
            given = _parameters(call)
        except CallError as error:
            raise ConfigError(
                f"codec is {text!r}, {error}. It takes: auto, dense, int8, topk(k=10), "
                "lowrank(k=10, r=64), sampled(draws=50, temperature=1, seed=0), float32"
            ) from error
        for word, value in given.items():
            kind, least = _FORMS[call.name][word]
            if value < least or (kind is float and not least < value < float("inf")):
                rule = f"above {least}" if kind is float else f"of at least {least}"
                raise ConfigError(f"{word} of {call.name} is {value}, expected a number {rule}")
            if kind is int and value >= 1 << 64:
                raise ConfigError(f"{word} of {call.name} is {value}, expected less than 2^64")
        return cls(call.name, given)

    def __str__(self) -> str:
        """Write the form that `parse` reads."""
        words = ", ".join(f"{word}={value}" for word, value in self.parameters.items())
        return f"{self.name}({words})" if words else self.name


def _parameters(call: Call) -> dict[str, int | float]:
    form = _FORMS[call.name]
    given: dict[str, int | float] = {}
    for name, value, offset, value_offset in call.arguments:
        if name is None or name not in form or name in given:
            raise CallError(unused_names(form, given), offset)
        kind, _ = form[name]
        if type(value) is not int and type(value) is not kind:
            raise CallError("a number" if kind is float else "a whole number", value_offset)
        given[name] = kind(value)
    return given
