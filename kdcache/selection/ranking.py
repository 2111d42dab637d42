"""One sort, grouped by class: the order of difficulty that every method starts from.

A sample is one uint64 entry: the bits of its score above its sample id. Entries differ, so the
order is the same on every machine and with every sorting algorithm: by score, ascending (easiest
first), ties to the smaller sample id. Entries are grouped by a counting sort and then sorted in
place, so that beside scores and labels there are 8 bytes for each sample.
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
"""A sample id takes half of an entry."""

ID_MASK = np.uint64(0xFFFFFFFF)
"""The bits of an entry that are its sample id."""
KEY_SHIFT = np.uint64(32)
"""Places that its key is above them."""

_SIGN = np.uint32(0x80000000)


class Ranking(NamedTuple):
    """Samples in groups, each group sorted."""

    entries: Entries
    """(N,) keys with their sample ids, the groups one after the other."""
    bounds: Ids
    """(G + 1,) group g is `entries[bounds[g]:bounds[g + 1]]`."""

    def groups(self) -> list[Entries]:
        """Return the entries of each group, as views."""
        return [self.entries[start:end] for start, end in pairwise(self.bounds.tolist())]


def native_numbers(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the same numbers in one of four types of this machine's byte order, copied if need be.

    Compiled code takes no other: float16 becomes float32, integers int64, or uint64 where that is
    what they are.

    Args:
        values: floats of at most 64 bits, integers or truth values.
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
        scores: (N,) numbers without nan.
        labels: (N,) in [0, C).
        group_of_class: (C,) group of each class's samples, in [0, num_groups).
        num_groups: G.
    """
    sizes = np.bincount(labels, minlength=len(group_of_class))
    group_sizes = np.bincount(group_of_class, weights=sizes, minlength=num_groups).astype(np.int64)
    bounds = np.concatenate([[0], np.cumsum(group_sizes)]).astype(np.int64)
    entries = np.empty(len(labels), dtype=np.uint64)
    keys, are_floats = _sortable(scores)
    _deal(keys, are_floats, labels, group_of_class, bounds[:-1].copy(), entries)
    for group in Ranking(entries, bounds).groups():
        group.sort()
    return Ranking(entries, bounds)


def draws(seed: int, stream: str, count: int) -> Draws:
    """Return (count,) uint32 of one named purpose, one for each sample id.

    The bits of the generator itself, which numpy promises never to change.
    """
    raw = generator(seed, stream).bit_generator.random_raw(-(-count // 2))
    return np.asarray(raw, dtype="<u8").view("<u4")[:count].astype(np.uint32, copy=False)


@compiled()
def mark(entries: Entries, is_kept_N: npt.NDArray[np.bool_]) -> None:
    """Set what belongs to the samples of the entries, without a copy of their ids."""
    for entry in entries:
        is_kept_N[entry & ID_MASK] = True


@compiled()
def redraw(entries: Entries, draws_N: Draws) -> None:
    """Give every entry the draw of its sample in the place of its score. Unsorted afterwards."""
    for place in range(len(entries)):
        sample_id = entries[place] & ID_MASK
        entries[place] = (np.uint64(draws_N[sample_id]) << KEY_SHIFT) | sample_id


@compiled(inline="always")
def float_key(bits: np.uint32) -> np.uint32:
    """Return a number that orders the bits of float32 as their values are ordered; -0 is 0."""
    # Without a branch: the sign of a random key is not to be guessed.
    is_negative = np.uint32(bits >> np.uint32(31))
    flipped = np.uint32(is_negative * np.uint32(0x7FFFFFFF)) | _SIGN
    return np.uint32((bits ^ flipped) + np.uint32(bits == _SIGN))


@compiled()
def _deal(
    keys_N: npt.NDArray[np.uint32],
    are_floats: bool,
    labels_N: npt.NDArray[np.int64],
    group_of_class: npt.NDArray[np.int64],
    next_places: npt.NDArray[np.int64],
    entries_N: Entries,
) -> None:
    for sample_id in range(len(labels_N)):
        group = group_of_class[labels_N[sample_id]]
        key = float_key(keys_N[sample_id]) if are_floats else keys_N[sample_id]
        entries_N[next_places[group]] = (np.uint64(key) << KEY_SHIFT) | np.uint64(sample_id)
        next_places[group] += 1


def _sortable(scores: npt.NDArray[Any]) -> tuple[npt.NDArray[np.uint32], bool]:
    """Return 32 bits for each score, and whether they are those of a float32."""
    if scores.dtype == np.uint32:
        return scores, False
    if scores.dtype.kind == "f":
        with np.errstate(over="ignore"):
            narrow = scores.astype(np.float32, copy=False)
        if narrow is scores or np.array_equal(narrow, scores):
            return np.ascontiguousarray(narrow).view(np.uint32), True
    # Of what float32 would round, and so make equal, the ranks are sorted.
    return np.unique(scores, return_inverse=True)[1].astype(np.uint32), False
