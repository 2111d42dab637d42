"""Apply brightness, contrast, saturation and erasing to pixels, in exact integer arithmetic.

The order is fixed. Pixels are uint8 and blended as in Pillow and torchvision; factors are in 1/256;
halves are rounded up:

    grey(r, g, b) = (19595 r + 38470 g + 7471 b + 32768) / 65536, rounded down (Pillow's mode L)
    brightness    v -> f v
    contrast      v -> m + f (v - m), where m is the mean grey of the view before any change,
                  rounded, and then changed by the brightness
    saturation    v -> g + f (v - g), g the grey of the pixel
    erasing       a box of zeros

m is computed from the pixels after cropping and resizing. Brightness and contrast are applied
together, with one table of 256 values.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kdcache.compiled import compiled
from kdcache.data.photometric_parameters import Change, view_change
from kdcache.data.policy import FACTOR_ONE, PhotometricNumbers

U8 = npt.NDArray[np.uint8]


@compiled(nogil=True)
def change_samples(
    numbers: npt.NDArray[np.float64],
    seed: np.uint64,
    view_numbers: npt.NDArray[np.uint64],
    keys: npt.NDArray[np.uint64],
    worker: int,
    workers: int,
    images: U8,
) -> None:
    """Change V views of each of a worker's samples.

    This is a second pass, so that policies without changes skip it.

    Args:
        numbers: a PhotometricNumbers as one row.
        seed: seed of the views.
        view_numbers: (V,) view numbers.
        keys: (B,) view keys.
        worker: index of this worker. It changes every `workers`-th sample from this index on.
        workers: number of workers.
        images: (at least B, V, S, S, 3), changed in place.
    """
    policy = PhotometricNumbers(
        np.int64(numbers[0]),
        np.int64(numbers[1]),
        np.int64(numbers[2]),
        np.int64(numbers[3]),
        np.int64(numbers[4]),
        np.int64(numbers[5]),
        numbers[6],
        numbers[7],
        numbers[8],
        numbers[9],
        numbers[10],
    )
    for index in range(worker, len(keys), workers):
        for v in range(len(view_numbers)):
            change = view_change(policy, seed, view_numbers[v], keys[index], images.shape[2])
            apply_change(images[index, v], change)


@compiled(nogil=True)
def apply_change(image: U8, change: Change) -> None:
    """Change (S, S, 3) pixels in place.

    Args:
        image: pixels that were cut out, resized and mirrored.
        change: see `kdcache.data.photometric_parameters`.
    """
    brightness, contrast, saturation, top, left, height, width = change
    if brightness != FACTOR_ONE or contrast != FACTOR_ONE:
        mean = _mean_grey(image) if contrast != FACTOR_ONE else 0
        _look_up(image, _table(brightness, contrast, mean))
    if saturation != FACTOR_ONE:
        _saturate(image, saturation)
    image[top : top + height, left : left + width] = 0


@compiled(nogil=True)
def _blend(base: int, value: int, factor: int) -> int:
    """Return base + factor (value - base), rounded, in [0, 255]."""
    mixed = (base * (FACTOR_ONE - factor) + value * factor + FACTOR_ONE // 2) >> 8
    return min(max(mixed, 0), 255)


@compiled(nogil=True)
def _grey(red: int, green: int, blue: int) -> int:
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


@compiled(nogil=True)
def _mean_grey(image: U8) -> int:
    """Return the mean of all pixels' grey, halves upwards."""
    total = 0
    for row in range(image.shape[0]):
        for column in range(image.shape[1]):
            total += _grey(image[row, column, 0], image[row, column, 1], image[row, column, 2])
    count = image.shape[0] * image.shape[1]
    return (2 * total + count) // (2 * count)


@compiled(nogil=True)
def _table(brightness: int, contrast: int, mean: int) -> U8:
    """Return the (256,) lookup table of brightness and contrast."""
    table = np.empty(256, dtype=np.uint8)
    bright_mean = _blend(0, mean, brightness)
    for value in range(256):
        table[value] = _blend(bright_mean, _blend(0, value, brightness), contrast)
    return table


@compiled(nogil=True)
def _look_up(image: U8, table: U8) -> None:
    values = image.reshape(-1)
    for i in range(len(values)):
        values[i] = table[values[i]]


@compiled(nogil=True)
def _saturate(image: U8, factor: int) -> None:
    for row in range(image.shape[0]):
        for column in range(image.shape[1]):
            red, green, blue = image[row, column, 0], image[row, column, 1], image[row, column, 2]
            grey = _grey(red, green, blue)
            image[row, column, 0] = _blend(grey, red, factor)
            image[row, column, 1] = _blend(grey, green, factor)
            image[row, column, 2] = _blend(grey, blue, factor)
