"""Compute the photometric parameters of a view from (seed, view number, view key).

A change is (brightness, contrast, saturation, top, left, height, width): three factors in 1/256 and
the box of the output that is erased. The clean view has none. The factors are those of
torchvision's ColorJitter, but always applied in this order. The box is that of its RandomErasing.
`kdcache.reader.photometric_kernels` applies them.

Factors and erased boxes have their own random streams. So the crop boxes of a policy are the same
with and without changes, and a factor does not depend on the other changes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kdcache.compiled import compiled
from kdcache.data.philox import below, log_uniform, philox, uniform
from kdcache.data.policy import FACTOR_ONE, PhotometricNumbers, Policy
from kdcache.data.views import validate_seed, validate_view, validate_view_keys

ERASE_ATTEMPTS = 10
"""Number of boxes that are tried before nothing is erased, as in torchvision."""

Change = tuple[np.int64, np.int64, np.int64, np.int64, np.int64, np.int64, np.int64]
"""Brightness, contrast, saturation; top, left, height, width."""

_STREAM_FACTORS = np.uint64(0x666163746F7273)  # "factors"
_STREAM_ERASE = np.uint64(0x6572617365)  # "erase"


def photometric_parameters(
    policy: Policy | str, seed: int, view: int, view_keys: npt.ArrayLike, image_size: int
) -> npt.NDArray[np.int32]:
    """Return the photometric parameters of one view, for every image.

    Args:
        policy: a policy, or the text of one.
        seed: the store's view seed, in [0, 2^64).
        view: view number; 0 is the clean view.
        view_keys: (n,) integers in [0, 2^64), such as `Beton.view_keys`.
        image_size: height and width of the output.

    Returns:
        (n, 7) int32: brightness, contrast and saturation in 1/256 (256 changes nothing); top, left,
        height and width of the erased box in the output (height 0: nothing is erased).
    """
    if isinstance(policy, str):
        policy = Policy.parse(policy)
    keys = validate_view_keys(view_keys)
    changes = np.empty((len(keys), 7), dtype=np.int32)
    numbers = policy.photometric_numbers()
    _fill(numbers, validate_seed(seed), validate_view(view), keys, image_size, changes)
    return changes


@compiled()
def _fill(
    numbers: PhotometricNumbers,
    seed: np.uint64,
    view: np.uint64,
    view_keys: npt.NDArray[np.uint64],
    image_size: int,
    changes: npt.NDArray[np.int32],
) -> None:
    for i in range(len(view_keys)):
        changes[i] = view_change(numbers, seed, view, view_keys[i], image_size)


@compiled()
def view_change(
    numbers: PhotometricNumbers,
    seed: np.uint64,
    view: np.uint64,
    view_key: np.uint64,
    image_size: int,
) -> Change:
    """Return the change of one view as int64; see `photometric_parameters`."""
    one, none = np.int64(FACTOR_ONE), np.int64(0)
    if view == 0:
        return one, one, one, none, none, none, none
    draws = philox(seed, _STREAM_FACTORS, view_key, view, np.uint64(0))
    brightness = _between(draws[0], numbers.brightness_low, numbers.brightness_high)
    contrast = _between(draws[1], numbers.contrast_low, numbers.contrast_high)
    saturation = _between(draws[2], numbers.saturation_low, numbers.saturation_high)
    top, left, height, width = _erased_box(numbers, seed, view, view_key, image_size)
    return brightness, contrast, saturation, top, left, height, width


@compiled()
def _between(bits: np.uint64, low: int, high: int) -> np.int64:
    """Return an int64 in [low, high]."""
    return low + below(bits, high - low + 1)


@compiled()
def _erased_box(
    numbers: PhotometricNumbers,
    seed: np.uint64,
    view: np.uint64,
    view_key: np.uint64,
    image_size: int,
) -> tuple[np.int64, np.int64, np.int64, np.int64]:
    none = np.int64(0)
    first, _, _, _ = philox(seed, _STREAM_ERASE, view_key, view, np.uint64(0))
    if uniform(first) >= numbers.erase:
        return none, none, none, none
    for attempt in range(ERASE_ATTEMPTS):
        draws = philox(seed, _STREAM_ERASE, view_key, view, np.uint64(attempt + 1))
        share = numbers.scale_low + uniform(draws[0]) * (numbers.scale_high - numbers.scale_low)
        area = share * np.float64(image_size * image_size)
        ratio = log_uniform(draws[1], numbers.log_ratio_low, numbers.log_ratio_high)
        height = np.int64(np.floor(np.sqrt(area * ratio) + 0.5))
        width = np.int64(np.floor(np.sqrt(area / ratio) + 0.5))
        if 0 < height < image_size and 0 < width < image_size:
            top = below(draws[2], image_size - height + 1)
            left = below(draws[3], image_size - width + 1)
            return top, left, height, width
    return none, none, none, none
