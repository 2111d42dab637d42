"""Parse and check view policies, and convert them to numbers for the compiled code."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from kdcache.calls import CallError, Word, parse_call, unused_names
from kdcache.errors import ConfigError

Range = tuple[float, float]
"""Minimum and maximum, both inclusive."""

Filter = Literal["bilinear", "bicubic"]
"""A filter with which Pillow resizes."""

FILTERS: tuple[Filter, ...] = get_args(Filter)

PixelDefinition = Literal["pillow", "planes"]
"""`pillow`: the pixels that Pillow gives. `planes`: luma, and chroma at half its resolution, are
resized separately and then converted to RGB, so that an image can be stored as its planes."""

DecodeMode = Literal["full", "scaled"]
"""`scaled` decodes a JPEG at 1/2, 1/4 or 1/8 of its size where a box is that much larger than the
image size. It is faster and changes the pixels."""

DEFAULT_DEFINITION: PixelDefinition = "pillow"
DEFAULT_DECODE: DecodeMode = "full"

UNCHANGED: Range = (1.0, 1.0)
MAX_FACTOR = 10.0
MAX_PADDING = 65_535
"""Maximum padding in pixels, the longest side of a JPEG. A window further out holds only zeros."""

ERASE_SCALE: Range = (0.02, 0.33)
ERASE_RATIO: Range = (0.3, 3.3)

FACTORS = ("brightness", "contrast", "saturation")
FACTOR_ONE = 256
"""The factor 1 in the unit of photometric parameters, which is 1/256."""

CENTER_CROP_RATIO = 0.875
"""Side of the clean view's centre square, as a fraction of the short side (224 of 256)."""

MAX_SMALL_IMAGE_SIZE = 64
"""Maximum height and width of small images, in pixels. They are stored raw, the clean view shows
all of them, and some models get a stem that does not shrink them."""

_KINDS = {"clean": 0, "pad-crop": 1, "rrc": 2}
CLEAN, PAD_CROP, RRC = _KINDS.values()


@dataclass(frozen=True)
class Policy:
    """The distribution of the views from 1 on. `Policy.parse` reads the text that `str` writes.

    pad-crop(4, flip=True)                              zeros around, a window of the image's size
    rrc(scale=(0.08, 1.0), ratio=(0.75, 1.33), flip=True)   torchvision's RandomResizedCrop
    clean                                               every view is the clean view

    The first two take photometric changes and erasing as well (`data/photometric_parameters.py`):

    rrc(brightness=0.4, contrast=0.4, saturation=0.4, erase=0.25)

    `filter=bicubic` resizes with Pillow's bicubic filter instead of its bilinear one.
    """

    kind: Literal["clean", "pad-crop", "rrc"]
    padding: int = 0
    """pad-crop: zeros on each side, in pixels of the stored image."""
    scale: Range = (0.08, 1.0)
    """rrc: minimum and maximum fraction of the image's area."""
    ratio: Range = (3 / 4, 4 / 3)
    """rrc: minimum and maximum width / height."""
    flip: bool = False
    """Mirror left and right with probability 1/2."""
    brightness: Range = UNCHANGED
    """Minimum and maximum factor of brightness; `brightness=x` stands for 1 - x to 1 + x."""
    contrast: Range = UNCHANGED
    """Minimum and maximum factor of contrast; see `brightness`."""
    saturation: Range = UNCHANGED
    """Minimum and maximum factor of saturation; see `brightness`."""
    erase: float = 0.0
    """Probability that a box of the output is black, in [0, 1]."""
    erase_scale: Range = ERASE_SCALE
    """Minimum and maximum fraction of the output's area that is erased."""
    erase_ratio: Range = ERASE_RATIO
    """Minimum and maximum height / width of the erased box, as in torchvision."""
    filter: Filter = "bilinear"
    """The filter that resizes the boxes. (That of the clean view belongs to the teacher.)"""

    def __post_init__(self) -> None:
        """Check every range, and refuse options that the kind does not use."""
        used = {"pad-crop": ("padding", "flip"), "rrc": ("scale", "ratio", "flip"), "clean": ()}
        if self.kind not in used:
            raise ConfigError(
                parameter="kind", value=self.kind, rule=f"one of {', '.join(sorted(used))}"
            )
        for name in ("padding", "scale", "ratio", "flip"):
            value = getattr(self, name)
            if name not in used[self.kind] and value != getattr(type(self), name):
                raise ConfigError(
                    f"{name} of a policy is {value}, expected none with kind {self.kind}",
                    parameter=name,
                    value=value,
                )
        if self.filter not in FILTERS:
            raise ConfigError(
                f"filter of a policy is {self.filter!r}, expected {' or '.join(FILTERS)}"
            )
        if not 0 <= self.padding <= MAX_PADDING:
            raise ConfigError(
                f"padding of a policy is {self.padding}, expected a number in [0, {MAX_PADDING:,}]"
            )
        for name, (low, high), top in (
            ("scale", self.scale, 1.0),
            ("ratio", self.ratio, math.inf),
            ("erase_scale", self.erase_scale, 1.0),
            ("erase_ratio", self.erase_ratio, math.inf),
        ):
            if not 0 < low <= high <= top or math.isinf(high):
                raise ConfigError(
                    f"{name} of a policy is ({low}, {high}), expected 0 < low <= high <= {top}"
                )
        for name in FACTORS:
            low, high = getattr(self, name)
            if not 0 <= low <= high <= MAX_FACTOR:
                raise ConfigError(
                    f"{name} of a policy is ({low}, {high}), expected 0 <= low <= high <= "
                    f"{MAX_FACTOR}"
                )
        if not 0 <= self.erase <= 1:
            raise ConfigError(f"erase of a policy is {self.erase}, expected a number in [0, 1]")
        if self.erase == 0 and (self.erase_scale, self.erase_ratio) != (ERASE_SCALE, ERASE_RATIO):
            raise ConfigError(
                f"erase of a policy is {self.erase} with erase_scale or erase_ratio, expected a "
                "probability above 0"
            )
        if self.kind == "clean" and self.changes_pixels:
            raise ConfigError(f"policy is {self!r}, expected no changes of pixels with kind clean")

    @classmethod
    def parse(cls, text: str) -> Policy:
        """Read a policy, such as `pad-crop(4, flip)`, `rrc(scale=(0.25, 1))` or `clean`.

        Raises:
            ConfigError: if the text is malformed (the message names the position, what was expected
                there, and the known forms), or a value is out of range.
        """
        try:
            kind, options = _parse(text)
        except CallError as error:
            raise ConfigError(
                f"policy is {text!r}, {error}. It takes: pad-crop(PADDING, flip=True), "
                "rrc(scale=(LOW, HIGH), ratio=(LOW, HIGH), flip=True), clean; the first two also "
                "with brightness, contrast, saturation=X or (LOW, HIGH), erase=PROBABILITY, "
                "erase_scale and erase_ratio=(LOW, HIGH), filter=bilinear or bicubic"
            ) from error
        return cls(kind, **options)  # type: ignore[arg-type]

    def __str__(self) -> str:
        """Return the text that `parse` reads: all options of boxes, and those of changes if any."""
        if self.kind == "clean":
            return "clean"
        changes = "".join(
            f", {name}={getattr(self, name)}"
            for name in FACTORS
            if getattr(self, name) != UNCHANGED
        )
        if self.erase > 0:
            changes += f", erase={self.erase}"
            changes += f", erase_scale={self.erase_scale}, erase_ratio={self.erase_ratio}"
        if self.filter != "bilinear":
            changes += f", filter={self.filter}"
        if self.kind == "pad-crop":
            return f"pad-crop({self.padding}, flip={self.flip}{changes})"
        return f"rrc(scale={self.scale}, ratio={self.ratio}, flip={self.flip}{changes})"

    @property
    def changes_pixels(self) -> bool:
        """True if views have photometric changes or erased boxes."""
        return self.erase > 0 or any(getattr(self, name) != UNCHANGED for name in FACTORS)

    def numbers(self, center_crop_ratio: float = CENTER_CROP_RATIO) -> PolicyNumbers:
        """Return the parameters of the boxes for the compiled code.

        Args:
            center_crop_ratio: side of the clean view's centre square, as a fraction of the short
                side, in (0, 1].
        """
        return PolicyNumbers(
            _KINDS[self.kind],
            self.padding,
            *self.scale,
            *_logarithms(self.ratio),
            *self.ratio,
            self.flip,
            center_crop_ratio,
        )

    def photometric_numbers(self) -> PhotometricNumbers:
        """Return the parameters of photometric changes and erased boxes for the compiled code."""
        return PhotometricNumbers(
            *_in_256ths(self.brightness),
            *_in_256ths(self.contrast),
            *_in_256ths(self.saturation),
            self.erase,
            *self.erase_scale,
            *_logarithms(self.erase_ratio),
        )


class PolicyNumbers(NamedTuple):
    """The parameters of a policy's boxes, for compiled code."""

    kind: int
    padding: int
    scale_low: float
    scale_high: float
    log_ratio_low: float
    log_ratio_high: float
    ratio_low: float
    ratio_high: float
    flip: bool
    center_crop_ratio: float


class PhotometricNumbers(NamedTuple):
    """The parameters of a policy's photometric changes, for compiled code; factors in 1/256."""

    brightness_low: int
    brightness_high: int
    contrast_low: int
    contrast_high: int
    saturation_low: int
    saturation_high: int
    erase: float
    scale_low: float
    scale_high: float
    log_ratio_low: float
    log_ratio_high: float


def _in_256ths(factors: Range) -> tuple[int, int]:
    low, high = (math.floor(FACTOR_ONE * factor + 0.5) for factor in factors)
    return low, high


def _logarithms(ratio: Range) -> Range:
    # Rounded, because the last bit of a logarithm differs between C libraries, but views must not.
    return round(math.log(ratio[0]), 12), round(math.log(ratio[1]), 12)


_CHANGES: dict[str, Any] = {
    **dict.fromkeys(FACTORS, UNCHANGED),
    "erase": 0.0,
    "erase_scale": ERASE_SCALE,
    "erase_ratio": ERASE_RATIO,
    "filter": "bilinear",
}
_FORMS: dict[str, dict[str, Any]] = {
    "clean": {},
    "pad-crop": {"padding": 4, "flip": True, **_CHANGES},
    "rrc": {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "flip": True, **_CHANGES},
}
"""Kind -> option -> default."""


_VALUES = {
    "padding": "a whole number",
    "flip": "True or False",
    "erase": "a number",
    "filter": " or ".join(FILTERS),
    **dict.fromkeys(FACTORS, "a number or (LOW, HIGH)"),
}
"""Option -> expected value, for options that are not ranges."""


def _parse(text: str) -> tuple[str, dict[str, Any]]:
    call = parse_call(text, _FORMS)
    form = _FORMS[call.name]
    given: dict[str, Any] = {}
    for given_name, value, offset, value_offset in call.arguments:
        # `flip` alone means flip=True, a number without a name is the padding.
        alone = (str(value), True) if isinstance(value, Word) else ("padding", value)
        name, wanted = alone if given_name is None else (given_name, value)
        if name not in form or name in given:
            raise CallError(unused_names(form, given), offset)
        try:
            given[name] = _typed(name, wanted)
        except (TypeError, ValueError) as error:
            raise CallError(_VALUES.get(name, "(LOW, HIGH)"), value_offset) from error
    return call.name, form | given


def _typed(name: str, value: Any) -> Any:
    """Return an option's value as `Policy` holds it."""
    if name == "filter":
        if str(value) not in FILTERS:
            raise ValueError(value)
        return str(value)
    exact = {"padding": int, "flip": bool}.get(name)
    if exact is not None:
        if type(value) is not exact:
            raise TypeError(value)
        return value
    if name == "erase":
        return _number(value)
    if name in FACTORS and isinstance(value, (int, float)):
        return max(0.0, 1 - _number(value)), 1 + _number(value)
    low, high = value
    return _number(low), _number(high)


def _number(value: Any) -> float:
    if type(value) not in {int, float}:
        raise TypeError(value)
    return float(value)
