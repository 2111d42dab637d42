"""Sort the samples of each group by difficulty; every method starts from this order.

Each sample is a uint64 entry: its score in the high 32 bits, its sample id in the low 32 bits. No
two entries are equal, so every machine and every sorting algorithm gives the same order: ascending
by score (easiest first), ties by sample id. A counting sort groups the entries and each group is
sorted in place, so the sort takes 8 bytes per sample beside scores and labels.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kdcache.compiled import compiled
from kdcache.rng import generator

Entries = npt.NDArray[np.uint64]
Ids = npt.NDArray[np.int64]
Draws = npt.NDArray[np.uint32]

MAX_SAMPLES = 2**32
"""A sample id takes 32 bits of an entry."""

ID_MASK = np.uint64(0xFFFFFFFF)
"""The bits of an entry that hold the sample id."""
KEY_SHIFT = np.uint64(32)
"""The sort key is shifted left by this many bits."""

_SIGN = np.uint32(0x80000000)


class Ranking(NamedTuple):
    """Samples in groups, each group sorted."""

    entries: Entries
    """(N,) entries, group after group."""
    bounds: Ids
    """(G + 1,) offsets: group g is `entries[bounds[g]:bounds[g + 1]]`."""

    def groups(self) -> list[Entries]:
        """Return the entries of each group, as views."""
        return [self.entries[start:end] for start, end in pairwise(self.bounds.tolist())]


def native_numbers(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the numbers as float32, float64, int64 or uint64 in native byte order.

    The compiled code accepts only these types. The array is copied only if its type changes.

    Args:
        values: floats of at most 64 bits, integers or booleans.
    """
    narrow, wide = (np.float32, np.float64) if values.dtype.kind == "f" else (np.int64, np.uint64)
    return values.astype(narrow if np.can_cast(values.dtype, narrow) else wide, copy=False)


def rank(
    scores: npt.NDArray[Any],
    labels: npt.NDArray[np.int64],
    group_of_class: npt.NDArray[np.int64],
    num_groups: int,
) -> Ranking:
    """Sort the samples of each group.

    Args:
        scores: (N,) numbers without NaN.
        labels: (N,) in [0, C).
        group_of_class: (C,) the group of each class, in [0, num_groups).
        num_groups: number of groups G.
    """
    sizes = np.bincount(labels, minlength=len(group_of_class))
    group_sizes = np.bincount(group_of_class, weights=sizes, minlength=num_groups).astype(np.int64)
    bounds = np.concatenate([[0], np.cumsum(group_sizes)]).astype(np.int64)
    entries = np.empty(len(labels), dtype=np.uint64)
    keys, are_floats = _sortable(scores)
    _fill_groups(keys, are_floats, labels, group_of_class, bounds[:-1].copy(), entries)
    for group in Ranking(entries, bounds).groups():
        group.sort()
    return Ranking(entries, bounds)


def draws(seed: int, stream: str, count: int) -> Draws:
    """Return one random uint32 per sample id, (count,), from a named stream.

    They are the raw bits of the generator, which numpy guarantees never to change.
    """
    raw = generator(seed, stream).bit_generator.random_raw(-(-count // 2))
    return np.asarray(raw, dtype="<u8").view("<u4")[:count].astype(np.uint32, copy=False)


@compiled()
def mark(entries: Entries, is_kept_N: npt.NDArray[np.bool_]) -> None:
    """Set the flags of the entries' samples to True, without copying the ids."""
    for entry in entries:
        is_kept_N[entry & ID_MASK] = True


@compiled()
def redraw(entries: Entries, draws_N: Draws) -> None:
    """Replace the score in every entry by the draw of its sample. Does not sort."""
    for index in range(len(entries)):
        sample_id = entries[index] & ID_MASK
        entries[index] = (np.uint64(draws_N[sample_id]) << KEY_SHIFT) | sample_id


@compiled(inline="always")
def float_key(bits: np.uint32) -> np.uint32:
    """Map the bits of a float32 to a uint32 that sorts like its value; -0 equals 0."""
    # No branch: the processor cannot predict the sign of a random key.
    is_negative = np.uint32(bits >> np.uint32(31))
    flipped = np.uint32(is_negative * np.uint32(0x7FFFFFFF)) | _SIGN
    return np.uint32((bits ^ flipped) + np.uint32(bits == _SIGN))


@compiled()
def _fill_groups(
    keys_N: npt.NDArray[np.uint32],
    are_floats: bool,
    labels_N: npt.NDArray[np.int64],
    group_of_class: npt.NDArray[np.int64],
    next_offsets: npt.NDArray[np.int64],
    entries_N: Entries,
) -> None:
    for sample_id in range(len(labels_N)):
        group = group_of_class[labels_N[sample_id]]
        key = float_key(keys_N[sample_id]) if are_floats else keys_N[sample_id]
        entries_N[next_offsets[group]] = (np.uint64(key) << KEY_SHIFT) | np.uint64(sample_id)
        next_offsets[group] += 1


def _sortable(scores: npt.NDArray[Any]) -> tuple[npt.NDArray[np.uint32], bool]:
    """Return 32 bits for each score, and whether these are the bits of a float32."""
    if scores.dtype == np.uint32:
        return scores, False
    if scores.dtype.kind == "f":
        with np.errstate(over="ignore"):
            narrow = scores.astype(np.float32, copy=False)
        if narrow is scores or np.array_equal(narrow, scores):
            return np.ascontiguousarray(narrow).view(np.uint32), True
    # float32 could round different scores to equal numbers, so their ranks are sorted instead.
    return np.unique(scores, return_inverse=True)[1].astype(np.uint32), False
