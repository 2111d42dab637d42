"""Apply a selection method to scores, and return sample ids, exactly and deterministically.

A method gets one sorted group of samples and the number to keep. The option `balance` decides what
the groups are and how many samples each keeps (`kdcache.selection.quotas`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kdcache.errors import ConfigError
from kdcache.options import PruningOptions
from kdcache.selection.class_adaptive import error_densities
from kdcache.selection.context import Group, Method, SampleData, SelectionContext, require_kept
from kdcache.selection.methods import METHODS
from kdcache.selection.quotas import class_quotas, kept_total
from kdcache.selection.ranking import MAX_SAMPLES, Ids, mark, native_numbers, rank

_MAX_SHOWN_IDS = 10

_NO_DATA = SampleData()


def select_ids(
    scores: npt.NDArray[Any],
    labels: npt.NDArray[np.int64],
    options: PruningOptions,
    *,
    num_classes: int,
    correct: npt.NDArray[np.bool_] | None = None,
    data: SampleData = _NO_DATA,
) -> Ids:
    """Return the sample ids to keep.

    Selections are nested: with equal options (for `beta`, an equal peak), a larger `keep` retains
    every sample of a smaller one, provided that no class keeps fewer. With the balances `class` and
    `none`, no class ever does. With `proportional`, a class may lose one sample to the largest
    remainders unless every class grows by at least one.

    Args:
        scores: (N,) finite numbers, higher is harder. Ties are in the order of the sample ids.
        labels: (N,) in [0, C).
        options: validated options.
        num_classes: number of classes C.
        correct: (N,) True if the teacher's prediction is correct; only `class-adaptive` needs it.
        data: other data of the samples, for methods that read it.

    Returns:
        (floor(keep N + 0.5),) int64, sorted; at least one id.

    Raises:
        ConfigError: if an argument is out of range, a score is not finite (the message names the
            samples), or `min_per_class` needs more samples than are kept in all.
    """
    _check_arguments(scores, labels, num_classes)
    total = kept_total(len(labels), options.keep)
    sizes = np.bincount(labels, minlength=num_classes).tolist()
    minimum = options.min_per_class
    reserved = sum(min(size, minimum) for size in sizes)
    if reserved > total:
        raise ConfigError(
            parameter="min_per_class",
            value=minimum,
            problem=(
                f"it keeps {reserved:,} samples of {num_classes:,} classes, expected at most "
                f"{total:,}, the number that --keep {options.keep:g} keeps"
            ),
            remedy="Increase --keep or reduce --min-per-class",
        )
    if options.balance == "none":
        return _select_globally(scores, labels, options, sizes, total, data)
    densities = None
    if options.method == "class-adaptive":
        if correct is None:
            raise ConfigError("correct is None, expected the teacher's stats['correct']")
        densities = error_densities(correct, labels, num_classes)
    quotas = class_quotas(sizes, total, options.balance, min_per_class=minimum, densities=densities)
    return select_per_group(scores, labels, options, np.arange(num_classes), quotas, data)


def select_per_group(
    scores: npt.NDArray[Any],
    labels: npt.NDArray[np.int64],
    options: PruningOptions,
    group_of_class: npt.NDArray[np.int64],
    quotas: list[int],
    data: SampleData = _NO_DATA,
) -> Ids:
    """Apply a method to each group and return the sample ids to keep, sorted.

    Args:
        scores: (N,) finite.
        labels: (N,) in [0, C).
        options: the method and its options; `keep` does not count.
        group_of_class: (C,) the group of each class.
        quotas: number of samples to keep of each group; at most its size.
        data: other data of the samples, for methods that read it.
    """
    # A separate function frees entries and draws before the ids are allocated.
    return np.flatnonzero(_kept_mask(scores, labels, options, group_of_class, quotas, data))


def _kept_mask(
    scores: npt.NDArray[Any],
    labels: npt.NDArray[np.int64],
    options: PruningOptions,
    group_of_class: npt.NDArray[np.int64],
    quotas: list[int],
    data: SampleData,
) -> npt.NDArray[np.bool_]:
    scores = native_numbers(scores)
    context = SelectionContext(options, scores, labels, data)
    keys = scores if options.reads_scores else context.draws
    groups = rank(keys, labels, group_of_class, len(quotas)).groups()
    method: Method = METHODS.load(options.method)
    is_kept = np.zeros(len(labels), dtype=bool)
    for number, (entries, quota) in enumerate(zip(groups, quotas, strict=True)):
        if not quota:
            continue
        group = Group(number, entries)
        if options.method in METHODS:
            kept = method(group, quota, context)
        else:
            # The method gets a copy, because its result is checked against the entries.
            kept = method(Group(number, entries.copy()), quota, context)
            require_kept(options.method, group, quota, kept)
        mark(np.asarray(kept).astype(np.uint64, copy=False), is_kept)
    return is_kept


def _select_globally(
    scores: npt.NDArray[Any],
    labels: npt.NDArray[np.int64],
    options: PruningOptions,
    sizes: list[int],
    total: int,
    data: SampleData,
) -> Ids:
    """Select from one global order; a class that would keep too few becomes its own group."""
    group_of_class = np.zeros(len(sizes), dtype=np.int64)
    quotas = [total]
    while True:
        ids = select_per_group(scores, labels, options, group_of_class, quotas, data)
        kept = np.bincount(labels[ids], minlength=len(sizes)).tolist()
        minimums = [min(size, options.min_per_class) for size in sizes]
        short = [label for label in range(len(sizes)) if kept[label] < minimums[label]]
        if not short:
            return ids
        for label in short:
            group_of_class[label] = len(quotas)
            quotas.append(minimums[label])
            quotas[0] -= minimums[label]


def _check_arguments(
    scores: npt.NDArray[Any], labels: npt.NDArray[np.int64], num_classes: int
) -> None:
    if len(labels) > MAX_SAMPLES:
        raise ConfigError(f"{len(labels):,} samples are given, expected at most {MAX_SAMPLES:,}")
    if scores.shape != labels.shape or labels.ndim != 1 or not len(labels):
        raise ConfigError(
            f"scores have shape {scores.shape} and labels {labels.shape}, expected one score and "
            "one label per sample"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ConfigError(
            f"labels are {labels.min()} to {labels.max()}, expected 0 to {num_classes - 1}"
        )
    require_finite(scores)


def require_finite(scores: npt.NDArray[Any]) -> None:
    """Raise a ConfigError if a score is NaN or infinite; the message names the samples."""
    is_finite = np.isfinite(scores)
    if is_finite.all():
        return
    bad = np.flatnonzero(~is_finite)
    more = f" and {len(bad) - _MAX_SHOWN_IDS:,} more" if len(bad) > _MAX_SHOWN_IDS else ""
    raise ConfigError(
        f"the score of sample {bad[0]} is {scores[bad[0]]} ({len(bad):,} such samples), expected "
        f"finite scores. They are samples {', '.join(map(str, bad[:_MAX_SHOWN_IDS]))}{more}"
    )
