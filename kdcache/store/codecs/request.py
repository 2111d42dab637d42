"""Parse `--codec`: a codec with its parameters, or `auto`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kdcache.calls import Call, CallError, parse_call, unused_names
from kdcache.errors import ConfigError
from kdcache.registry import is_user_code
from kdcache.store.codecs.registry import CODECS, codec_class

AUTO = "auto"


@dataclass(frozen=True)
class CodecRequest:
    """A requested codec. Parameters that are left out get values that depend on the logits.

    auto                                       the smallest codec that preserves the gradient
    dense, int8, float32
    topk(k=10)                                 the k largest logits and statistics of the others
    lowrank(k=10, r=64, fine=16)               the k largest logits and r coefficients of the others
    sampled(draws=50, temperature=1, seed=0)   draws from the probabilities at one temperature
    """

    name: str
    parameters: dict[str, int | float] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> CodecRequest:
        """Parse a codec, such as `auto`, `topk(k=32)` or `sampled(draws=50, temperature=4)`.

        Raises:
            ConfigError: if the text has another form (the message names the first wrong character
                and the known forms), or a parameter is out of range.
        """
        name = text.partition("(")[0].strip()
        kind = codec_class(name) if name in CODECS or is_user_code(name) else None
        form = {} if kind is None else kind.request_parameters
        # The parser accepts simple names only. A stand-in of the same length preserves positions.
        stand_in = "_" * len(name)
        names, parsed = [AUTO, *CODECS], text
        if is_user_code(name):
            names, parsed = [*names, stand_in], text.replace(name, stand_in, 1)
        try:
            call = parse_call(parsed, names)
            given = _parameters(call, form)
        except CallError as error:
            raise ConfigError(
                f"codec is {text!r}, {error}. It takes: auto, dense, int8, topk(k=10), "
                "lowrank(k=10, r=64), sampled(draws=50, temperature=1, seed=0), float32, "
                "module:name"
            ) from error
        for word, value in given.items():
            number_type, minimum = form[word]
            too_small = number_type is float and not minimum < value < float("inf")
            if value < minimum or too_small:
                rule = f"above {minimum}" if number_type is float else f"of at least {minimum}"
                raise ConfigError(f"{word} of {name} is {value}, expected a number {rule}")
            if number_type is int and value >= 1 << 64:
                raise ConfigError(f"{word} of {name} is {value}, expected less than 2^64")
        return cls(name, given)

    def __str__(self) -> str:
        """Return the text form that `parse` reads."""
        words = ", ".join(f"{word}={value}" for word, value in self.parameters.items())
        return f"{self.name}({words})" if words else self.name


def _parameters(call: Call, form: Mapping[str, tuple[type, int]]) -> dict[str, int | float]:
    given: dict[str, int | float] = {}
    for name, value, offset, value_offset in call.arguments:
        if name is None or name not in form or name in given:
            raise CallError(unused_names(form, given), offset)
        kind, _ = form[name]
        if type(value) is not int and type(value) is not kind:
            raise CallError("a number" if kind is float else "an integer", value_offset)
        given[name] = kind(value)
    return given
