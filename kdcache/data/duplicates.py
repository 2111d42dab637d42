"""Find images that are stored twice: in both splits, or in one split with two labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

Digests = npt.NDArray[np.uint8]


def describe_duplicates(
    digests: Mapping[str, Digests],
    labels: Mapping[str, npt.NDArray[np.int64]],
    name_of: Callable[[str, int], str],
) -> Iterator[str]:
    """Yield one warning for each kind of duplicate.

    Args:
        digests: split -> (N, 16), one digest per image.
        labels: split -> (N,).
        name_of: name of an image, by split and index.
    """
    train, train_labels = digests["train"], labels["train"]
    if "val" in digests:
        in_both, originals = shared(digests["val"], train)
        if len(in_both):
            yield (
                f"{len(in_both):,} of {len(digests['val']):,} images of val are in train too, so "
                f"accuracies on val are too high: the first is {name_of('val', in_both[0])}, which "
                f"equals {name_of('train', originals[0])}"
            )
    order, starts = _grouped(train)
    sorted_labels = train_labels[order]
    differs = np.minimum.reduceat(sorted_labels, starts) != np.maximum.reduceat(
        sorted_labels, starts
    )
    if differs.any():
        ends = np.append(starts[1:], len(order))
        count = int((ends - starts)[differs].sum())
        group = int(np.flatnonzero(differs)[0])
        members = np.sort(order[starts[group] : ends[group]])
        first = int(members[0])
        other = int(members[train_labels[members] != train_labels[first]][0])
        yield (
            f"{count:,} images of train have an equal image with another label, the first are "
            f"{name_of('train', first)} and {name_of('train', other)}"
        )


def shared(these: Digests, others: Digests) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the indices of `these` that `others` have too, ascending, and where.

    Args:
        these: (N, 16).
        others: (M, 16).

    Returns:
        Two (K,) arrays: indices into `these`, and the first equal index of `others`.
    """
    joined = np.concatenate([others, these])
    order, starts = _grouped(joined)
    # The order is stable, so the first of a group is one of the others if any is.
    group = np.cumsum(np.bincount(starts, minlength=len(order))) - 1
    first = order[starts][group]
    found = (order >= len(others)) & (first < len(others))
    by_index = np.argsort(order[found], kind="stable")
    return order[found][by_index] - len(others), first[found][by_index]


def _grouped(digests: Digests) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return an order in which equal digests are neighbours, and where each group starts."""
    halves = np.ascontiguousarray(digests).view("<u8")
    order = np.lexsort((halves[:, 1], halves[:, 0])).astype(np.int64)
    ordered = halves[order]
    is_new = np.ones(len(order), dtype=bool)
    is_new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return order, np.flatnonzero(is_new)
