"""Read what a weights file states about its model, and check it.

A safetensors file has a text-to-text metadata table. Its entry `kdcache_description` is a JSON
object; see `WeightsDescription` for the fields. This module loads neither torch nor safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn, get_args

from kdcache.channels import MEAN_RULE, STD_RULE, is_mean, is_std
from kdcache.data.policy import DecodeMode, PixelDefinition
from kdcache.errors import WeightsError
from kdcache.models.weights_files import METADATA_KEY
from kdcache.options import Stem
from kdcache.seals import JSON_KEY

DESCRIPTION_KEY = "kdcache_description"
"""Entry of the metadata table that describes weights which another program saved. kdcache's own
files have the entry `kdcache` instead, which is sealed (`kdcache.models.weights_files`)."""


@dataclass(frozen=True, kw_only=True)
class WeightsDescription:
    """What a weights file states about its model; None for everything that it does not state."""

    arch: str | None = None
    """Name of the model, as in `make_model`."""
    classes: int | None = None
    """C, the number of classes."""
    class_names: list[str] | None = None
    """(C,) names in the order of the logits."""
    image_size: int | None = None
    """Height and width of the images that it was trained on, in pixels."""
    mean: list[float] | None = None
    """(3,) of its normalisation, in [0, 1]."""
    std: list[float] | None = None
    """(3,) of its normalisation, in (0, 1]."""
    stem: Stem | None = None
    """Stem of a model with two stems."""
    pixel_definition: PixelDefinition | None = None
    """Definition of the pixels that it was trained on."""
    decode: DecodeMode | None = None
    """Scale at which these were decoded."""
    top1: float | None = None
    """Top-1 accuracy on the evaluation split, in percent."""
    data_fingerprint: str | None = None
    """Fingerprint of the data that kdcache trained it on."""

    @property
    def normalisation(self) -> tuple[list[float], list[float]] | None:
        """Mean and std, if the file states them."""
        return None if self.mean is None or self.std is None else (self.mean, self.std)

    @classmethod
    def parse(cls, about: Mapping[str, Any], path: Path) -> WeightsDescription:
        """Check the fields that describe a model; other fields of `about` are ignored.

        Args:
            about: the JSON object of the file.
            path: the file, for messages.

        Raises:
            WeightsError: if a field has another type or is outside its range, or only one of mean
                and std is stated; names the file and the field.
        """
        given = {field.name: about.get(field.name) for field in fields(cls)}
        for name, value in given.items():
            holds, rule = _RULES[name]
            if value is not None and not holds(value):
                _refuse(path, f"{name} is {_short(value)}, expected {rule}")
        if (given["mean"] is None) != (given["std"] is None):
            stated, missing = ("mean", "std") if given["std"] is None else ("std", "mean")
            _refuse(path, f"{stated} is stated and {missing} is not, expected both or neither")
        names, classes = given["class_names"], given["classes"]
        if names is not None and classes not in (None, len(names)):
            _refuse(path, f"class_names has {len(names)} names, expected {classes}, its classes")
        return cls(**given)


def parse_metadata(metadata: Mapping[str, str] | None, path: Path) -> dict[str, Any]:
    """Return the JSON object that describes a file; it is empty if another program wrote the file.

    Args:
        metadata: the metadata table of the file, or None.
        path: the file, for messages.

    Raises:
        WeightsError: if the entry is no JSON object.
    """
    table = metadata or {}
    text = table.get(METADATA_KEY) or table.get(DESCRIPTION_KEY, "{}")
    try:
        about = json.loads(text)
    except json.JSONDecodeError:
        about = None
    if not isinstance(about, dict):
        _refuse(path, f"it is {_short(text)}, expected a JSON object")
    about.pop(JSON_KEY, None)
    return about


def _refuse(path: Path, problem: str) -> NoReturn:
    raise WeightsError(
        f"the metadata {DESCRIPTION_KEY!r} of {path} is not usable: {problem}. Save the file "
        f"again with metadata={{{DESCRIPTION_KEY!r}: json.dumps({{...}})}} of the right content, "
        "or without"
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


_MAX_SHOWN = 80


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_percentage(value: object) -> bool:
    return type(value) in {int, float} and 0 <= value <= 100  # type: ignore[operator]  # noqa: PLR2004


def _one_of(literal: Any) -> tuple[Callable[[Any], bool], str]:
    """Return the check of a value of a Literal type, and the rule."""
    values = get_args(literal)
    return lambda value: value in values, f"one of {', '.join(values)}"


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "arch": (_is_text, "the name of a model"),
    "classes": (_is_count, "a whole number above 0"),
    "class_names": (_are_names, "a list of texts"),
    "image_size": (_is_count, "a whole number of pixels above 0"),
    "mean": (is_mean, f"three numbers {MEAN_RULE}"),
    "std": (is_std, f"three numbers {STD_RULE}"),
    "stem": _one_of(Stem),
    "pixel_definition": _one_of(PixelDefinition),
    "decode": _one_of(DecodeMode),
    "top1": (_is_percentage, "a number of percent in [0, 100]"),
    "data_fingerprint": (_is_text, "a text"),
}
"""Field -> its check, and the rule for messages."""
