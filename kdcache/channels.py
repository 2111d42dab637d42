"""Read the mean and the standard deviation of a normalisation from the words of an option.

A normalisation maps a pixel value p in [0, 1] of channel c to (p - mean[c]) / std[c].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from kdcache.errors import ConfigError

CHANNELS = 3
"""Red, green, blue."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What torchvision's and most of timm's ImageNet models were trained with."""

DATA = "data"
"""Name of the normalisation with the mean and std of the packed training data."""

KNOWN_NORMALISATIONS = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "none": ((0.0,) * CHANNELS, (1.0,) * CHANNELS),
}
"""Name -> mean and std; `none` leaves pixels in [0, 1]."""

MEAN_RULE, STD_RULE = "in [0, 1]", "above 0 and at most 1"

_NAMES = (*KNOWN_NORMALISATIONS, DATA)
_EXAMPLES = {"mean": "0.485,0.456,0.406", "std": "0.229,0.224,0.225"}


class NormalisationWords(NamedTuple):
    """One value of `--teacher-mean` and of `--teacher-std`, checked."""

    mean: str
    std: str

    @classmethod
    def of_values(cls, mean: Sequence[float], std: Sequence[float]) -> NormalisationWords:
        """Return the words that stand for exactly these numbers, (3,) each."""
        return cls(*(",".join(repr(float(number)) for number in each) for each in (mean, std)))

    def values(
        self, data: tuple[Sequence[float], Sequence[float]]
    ) -> tuple[list[float], list[float]]:
        """Return the numbers, (3,) mean and (3,) std.

        Args:
            data: mean and std of the packed training data, which the word `data` stands for.
        """
        known = KNOWN_NORMALISATIONS | {DATA: (tuple(data[0]), tuple(data[1]))}
        mean = known[self.mean][0] if self.mean in known else _numbers(self.mean)
        std = known[self.std][1] if self.std in known else _numbers(self.std)
        return list(mean), list(std)


def parse_normalisations(
    means: Sequence[str], stds: Sequence[str], *, prefix: str = "teacher_"
) -> list[NormalisationWords]:
    """Check the values of `--teacher-mean` and `--teacher-std`, and pair them.

    A name (imagenet, data, none) that is given for one of the two stands for both.

    Args:
        means: values of the option, in order.
        stds: values of the other option, in order.
        prefix: what comes before `mean` and `std` in the options' names.

    Raises:
        ConfigError: if a value is neither a name nor one or three numbers in range, or the two
            options do not pair up.
    """
    for name, texts, holds, rule in (
        ("mean", means, is_mean, MEAN_RULE),
        ("std", stds, is_std, STD_RULE),
    ):
        for text in texts:
            _require_channels(f"{prefix}{name}", text, holds, f"{rule}, as {_EXAMPLES[name]}")
    for name, texts, others, other_name in (
        ("mean", means, stds, "std"),
        ("std", stds, means, "mean"),
    ):
        if (numbers := [text for text in texts if text not in _NAMES]) and not others:
            raise ConfigError(
                parameter=f"{prefix}{name}",
                value=numbers[0],
                rule=f"--{prefix.replace('_', '-')}{other_name} beside it",
            )
    if means and stds and len(means) != len(stds):
        raise ConfigError(
            parameter=f"{prefix}mean",
            value=tuple(means),
            rule=f"{len(stds)}, as many as --{prefix.replace('_', '-')}std",
        )
    return [
        NormalisationWords(mean, std)
        for mean, std in zip(means or stds, stds or means, strict=True)
    ]


class Normalisation(NamedTuple):
    """Mean and std of the images of a model, and who stated them."""

    mean: list[float]
    """(3,) in [0, 1]."""
    std: list[float]
    """(3,) in (0, 1]."""
    is_assumed: bool = False
    """True if nobody stated them, so that they are the data's."""


def choose_normalisation(
    name: str,
    *,
    given: NormalisationWords | None,
    stated: tuple[list[float], list[float]] | None,
    data: tuple[list[float], list[float]],
    prefix: str = "teacher_",
) -> Normalisation:
    """Return the mean and std that the options or the model state, else the data's.

    Args:
        name: the model, for messages.
        given: what the options state, if they do.
        stated: what the model's file or publisher states, if they do.
        data: mean and std of the packed training data.
        prefix: what comes before `mean` and `std` in the options' names.

    Raises:
        ConfigError: if the options state others than the model.
    """
    wanted = given and given.values(data)
    if wanted and stated and wanted != stated:
        option = f"--{prefix.replace('_', '-')}"
        raise ConfigError(
            parameter=f"{prefix}mean",
            value=describe_channels(wanted[0]),
            problem=(
                f"with std {describe_channels(wanted[1])}, but {name} states mean "
                f"{describe_channels(stated[0])} and std {describe_channels(stated[1])}"
            ),
            remedy=f"Leave {option}mean and {option}std out",
        )
    if found := wanted or stated:
        return Normalisation(*found)
    return Normalisation(*data, is_assumed=True)


def describe_channels(values: Sequence[float]) -> str:
    """Return three numbers as an option takes them, with four significant digits."""
    return ",".join(f"{value:.4g}" for value in values)


def is_mean(value: object) -> bool:
    """Return True for three finite numbers in [0, 1]."""
    return _are_channels(value) and all(0 <= number <= 1 for number in value)  # type: ignore[attr-defined]


def is_std(value: object) -> bool:
    """Return True for three finite numbers above 0 and at most 1."""
    return _are_channels(value) and all(0 < number <= 1 for number in value)  # type: ignore[attr-defined]


def _are_channels(value: object) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == CHANNELS
        and all(type(number) in {int, float} and math.isfinite(number) for number in value)
    )


def _require_channels(
    parameter: str, text: str, holds: Callable[[object], bool], rule: str
) -> None:
    if text in _NAMES:
        return
    names = ", ".join(_NAMES)
    try:
        numbers = _numbers(text)
    except ValueError:
        numbers = ()
    if len(numbers) == CHANNELS and not holds(numbers) and max(numbers) > 1:
        raise ConfigError(
            parameter=parameter,
            value=text,
            rule=f"numbers {rule}",
            remedy="kdcache's pixels are in [0, 1]: divide values for [0, 255] by 255",
        )
    if not holds(numbers):
        raise ConfigError(
            parameter=parameter, value=text, rule=f"{names}, or one or three numbers {rule}"
        )


def _numbers(text: str) -> tuple[float, ...]:
    """Return three numbers; one alone stands for all channels."""
    numbers = tuple(float(word) for word in text.split(","))
    return numbers * CHANNELS if len(numbers) == 1 else numbers
