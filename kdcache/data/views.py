"""A view as a pure function of (seed, view number, sample id).

View 0 is the clean view. Views from 1 follow the policy. The teacher pass and the student's loader
evaluate the same function inside the decoder, so nothing but seed and policy is stored, and a
student's pixels are exactly those that the teacher answered for.

A view is a box in the stored image and a flip: (top, left, height, width, flip). The box is cut
out, what lies outside the image is zero, the result is resized to the image size, then mirrored.
"""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from kdcache.compiled import compiled
from kdcache.data.beton import LARGEST_SMALL_SIZE, BetonManifest
from kdcache.data.philox import below, philox, uniform
from kdcache.errors import ConfigError

CLEAN_SHARE = 0.875
"""Side of the clean view's centre square, as a share of the short side (224 of 256)."""

ATTEMPTS = 10
"""Boxes drawn before RandomResizedCrop falls back to a centre box, as in torchvision."""

Box = tuple[np.int64, np.int64, np.int64, np.int64, np.int64]
"""Top, left, height, width, flip."""

_STREAM_VIEWS = np.uint64(0x7669657773)  # "views"
_KINDS = {"clean": 0, "pad-crop": 1, "rrc": 2}
_CLEAN, _PAD_CROP, _RRC = 0, 1, 2


@dataclass(frozen=True)
class Policy:
    """How views from 1 are drawn. `Policy.parse` reads the form that `str` writes.

    pad-crop(4, flip=True)                              zeros around, a window of the image's size
    rrc(scale=(0.08, 1.0), ratio=(0.75, 1.33), flip=True)   torchvision's RandomResizedCrop
    clean                                               every view is the clean view
    """

    kind: Literal["clean", "pad-crop", "rrc"]
    padding: int = 0
    """pad-crop: zeros on each side, in pixels of the stored image."""
    scale: tuple[float, float] = (0.08, 1.0)
    """rrc: smallest and largest share of the image's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """rrc: smallest and largest width over height."""
    flip: bool = False
    """Mirror left and right with probability 1/2."""

    def __post_init__(self) -> None:
        """Check every range."""
        if self.padding < 0:
            raise ConfigError(f"padding of a policy is {self.padding}, expected at least 0")
        for name, (low, high), top in (
            ("scale", self.scale, 1.0),
            ("ratio", self.ratio, math.inf),
        ):
            if not 0 < low <= high <= top or math.isinf(high):
                raise ConfigError(
                    f"{name} of a policy is ({low}, {high}), expected 0 < low <= high <= {top}"
                )

    @classmethod
    def parse(cls, text: str) -> Policy:
        """Read a policy, such as `pad-crop(4, flip)`, `rrc(scale=(0.25, 1))` or `clean`.

        Raises:
            ConfigError: names the forms that are known.
        """
        try:
            return _parse(text)
        except (SyntaxError, TypeError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"policy is {text!r}, expected pad-crop(PADDING, flip=True), "
                "rrc(scale=(LOW, HIGH), ratio=(LOW, HIGH), flip=True) or clean"
            ) from error

    def __str__(self) -> str:
        """Write the form that `parse` reads, every option spelled out."""
        if self.kind == "clean":
            return "clean"
        if self.kind == "pad-crop":
            return f"pad-crop({self.padding}, flip={self.flip})"
        return f"rrc(scale={self.scale}, ratio={self.ratio}, flip={self.flip})"

    def numbers(self) -> PolicyNumbers:
        """Return the policy as the compiled code takes it."""
        # Rounded: the logarithm's last bit may differ between C libraries, a view must not.
        low, high = (round(math.log(value), 12) for value in self.ratio)
        return PolicyNumbers(
            _KINDS[self.kind], self.padding, *self.scale, low, high, *self.ratio, self.flip
        )


class PolicyNumbers(NamedTuple):
    """A policy, ready for numba."""

    kind: int
    padding: int
    scale_low: float
    scale_high: float
    log_ratio_low: float
    log_ratio_high: float
    ratio_low: float
    ratio_high: float
    flip: bool


class Views(NamedTuple):
    """Everything, besides the sample, that a view's pixels depend on."""

    policy: Policy
    seed: int
    image_size: int


_FORMS: dict[str, dict[str, Any]] = {
    "clean": {},
    "pad-crop": {"padding": 4, "flip": True},
    "rrc": {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "flip": True},
}
"""The options of each kind, and what they are when left out."""


def _parse(text: str) -> Policy:
    tree = ast.parse(text.strip().replace("pad-crop", "pad_crop"), mode="eval").body
    call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
    if not isinstance(call.func, ast.Name):
        raise TypeError(text)
    kind = call.func.id.replace("_", "-")
    said = [(str(word.arg), ast.literal_eval(word.value)) for word in call.keywords]
    for argument in call.args:
        if isinstance(argument, ast.Name):  # `flip` alone means flip=True
            said.append((argument.id, True))
        else:  # a number alone is the padding
            said.append(("padding", ast.literal_eval(argument)))
    given = dict(said)
    if kind not in _FORMS or not given.keys() <= _FORMS[kind].keys() or len(given) < len(said):
        raise ValueError(text)
    options = _FORMS[kind] | given
    for name, kinds in (("padding", int), ("flip", bool)):
        if name in options and type(options[name]) is not kinds:
            raise TypeError(text)
    for name in options.keys() & {"scale", "ratio"}:
        low, high = options[name]
        options[name] = (float(low), float(high))
    return Policy(kind, **options)  # type: ignore[arg-type]


def default_views(
    data: BetonManifest, *, policy: str | None = None, seed: int = 0, image_size: int | None = None
) -> Views:
    """Return the views of a data set; what is not given is as its manifest says."""
    return Views(Policy.parse(policy or data.policy), seed, image_size or data.image_size)


def parameters(
    policy: Policy | str,
    seed: int,
    view: int,
    sample_ids: npt.ArrayLike,
    sizes: npt.ArrayLike,
) -> npt.NDArray[np.int32]:
    """Return the box and flip of each sample's view.

    Args:
        policy: a policy, or the text of one.
        seed: the store's view seed, in [0, 2^64).
        view: view number; 0 is the clean view.
        sample_ids: (n,) integers >= 0.
        sizes: (n, 2) height and width of each stored image, or one (height, width) for all.

    Returns:
        (n, 5) int32: top, left, height, width, flip (0 or 1). Top and left are negative, or the
        box ends outside the image, where it takes in padding.
    """
    if isinstance(policy, str):
        policy = Policy.parse(policy)
    if view < 0:
        raise ConfigError(f"view is {view}, expected a number of at least 0")
    ids = np.asarray(sample_ids)
    if len(ids) and not np.issubdtype(ids.dtype, np.integer):
        raise ConfigError(f"sample ids are {ids.dtype}, expected integers")
    if len(ids) and ids.min() < 0:
        raise ConfigError(f"sample id is {ids.min()}, expected a number of at least 0")
    shape = np.broadcast_to(np.asarray(sizes, dtype=np.int64), (len(ids), 2))
    boxes = np.empty((len(ids), 5), dtype=np.int32)
    _fill(policy.numbers(), np.uint64(seed), np.uint64(view), ids.astype(np.uint64), shape, boxes)
    return boxes


@compiled()
def _fill(
    numbers: PolicyNumbers,
    seed: np.uint64,
    view: np.uint64,
    sample_ids: npt.NDArray[np.uint64],
    sizes: npt.NDArray[np.int64],
    boxes: npt.NDArray[np.int32],
) -> None:
    for i in range(len(sample_ids)):
        boxes[i] = view_box(numbers, seed, view, sample_ids[i], sizes[i, 0], sizes[i, 1])


@compiled()
def view_box(
    numbers: PolicyNumbers,
    seed: np.uint64,
    view: np.uint64,
    sample_id: np.uint64,
    height: np.int64,
    width: np.int64,
) -> Box:
    """Return (top, left, height, width, flip) of one view as int64.

    Args:
        numbers: a PolicyNumbers.
        seed: uint64.
        view: uint64.
        sample_id: uint64.
        height: int64, of the stored image.
        width: int64, of the stored image.
    """
    if view == 0 or numbers.kind == _CLEAN:
        return _clean_box(height, width)
    first, second, third, _ = philox(seed, _STREAM_VIEWS, sample_id, view, np.uint64(0))
    flip = np.int64(first >> np.uint64(63)) if numbers.flip else np.int64(0)
    if numbers.kind == _PAD_CROP:
        places = 2 * numbers.padding + 1
        top = below(second, places) - numbers.padding
        left = below(third, places) - numbers.padding
        return top, left, height, width, flip
    for attempt in range(ATTEMPTS):
        draws = philox(seed, _STREAM_VIEWS, sample_id, view, np.uint64(attempt + 1))
        share = numbers.scale_low + uniform(draws[0]) * (numbers.scale_high - numbers.scale_low)
        log_ratio = numbers.log_ratio_low + uniform(draws[1]) * (
            numbers.log_ratio_high - numbers.log_ratio_low
        )
        area = share * np.float64(height * width)
        ratio = _exp(log_ratio)
        box_width = np.int64(np.floor(np.sqrt(area * ratio) + 0.5))
        box_height = np.int64(np.floor(np.sqrt(area / ratio) + 0.5))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = below(draws[2], height - box_height + 1)
            left = below(draws[3], width - box_width + 1)
            return top, left, box_height, box_width, flip
    box_height, box_width = height, width
    if width < height * numbers.ratio_low:
        box_height = max(np.int64(1), np.int64(np.floor(width / numbers.ratio_low + 0.5)))
    elif width > height * numbers.ratio_high:
        box_width = max(np.int64(1), np.int64(np.floor(height * numbers.ratio_high + 0.5)))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width, flip


@compiled()
def _clean_box(height: np.int64, width: np.int64) -> Box:
    short: np.int64 = min(height, width)
    if short <= LARGEST_SMALL_SIZE:
        return np.int64(0), np.int64(0), height, width, np.int64(0)
    side = np.int64(short * CLEAN_SHARE)
    return (height - side) // 2, (width - side) // 2, side, side, np.int64(0)


@compiled()
def _exp(x: float) -> float:
    """Return e^x, from additions and multiplications alone.

    C libraries round the last bit of `exp` differently from one processor to the next; a box must
    not. Relative error below 2e-13 for |x| <= 8.
    """
    reduced = x / 256.0
    term = 1.0
    total = 1.0
    for k in range(1, 9):
        term = term * reduced / k
        total = total + term
    for _ in range(8):
        total = total * total
    return total
