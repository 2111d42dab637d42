"""Scores in, sample ids out: what each method keeps of each class. Exact, deterministic.

A method is a function of one sorted group of samples and the number to keep. What the groups are,
and their numbers, is the business of the balance (`kdcache.selection.quotas`).
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

_IDS_NAMED = 10

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

    A larger share keeps all that a smaller one keeps, with every method whose options stay the
    same (the peak of `beta` too), where no class keeps fewer: with `class` and `none` always; with
    `proportional` where every class grows by a sample, because by largest remainder a class may
    lose one when the total grows by less.

    Args:
        scores: (N,) finite numbers, higher = harder. Ties are in the order of the sample ids.
        labels: (N,) in [0, C).
        options: what to keep, checked when they were made.
        num_classes: C.
        correct: (N,) whether the teacher is right, for `class-adaptive`.
        data: what else is known of the samples, for a method of the user's own.

    Returns:
        (floor(keep N + 0.5),) int64, sorted.

    Raises:
        ConfigError: if an argument is outside its range, a score is not finite (names the samples),
            or `min_per_class` asks for more than is kept in all.
    """
    _check_arguments(scores, labels, num_classes)
    total = kept_total(len(labels), options.keep)
    sizes = np.bincount(labels, minlength=num_classes).tolist()
    least = options.min_per_class
    reserved = sum(min(size, least) for size in sizes)
    if reserved > total:
        raise ConfigError(
            f"--min-per-class is {least}, which keeps {reserved:,} samples of {num_classes:,} "
            f"classes, expected at most {total:,}, what --keep {options.keep:g} keeps in all. Keep "
            "more, or ask for fewer of each class",
            parameter="min_per_class",
            value=least,
        )
    if options.balance == "none":
        return _keep_of_all(scores, labels, options, sizes, total, data)
    densities = None
    if options.method == "class-adaptive":
        if correct is None:
            raise ConfigError("correct is None, expected the teacher's stats['correct']")
        densities = error_densities(correct, labels, num_classes)
    quotas = class_quotas(sizes, total, options.balance, min_per_class=least, densities=densities)
    return keep_of_each(scores, labels, options, np.arange(num_classes), quotas, data)


def keep_of_each(
    scores: npt.NDArray[Any],
    labels: npt.NDArray[np.int64],
    options: PruningOptions,
    group_of_class: npt.NDArray[np.int64],
    quotas: list[int],
    data: SampleData = _NO_DATA,
) -> Ids:
    """Return the sample ids to keep, sorted.

    Args:
        scores: (N,) finite.
        labels: (N,) in [0, C).
        options: which part of each group to keep; how many is what the quotas say.
        group_of_class: (C,) group of each class's samples.
        quotas: how many to keep of each group; at most its size.
        data: what else is known of the samples.
    """
    # In two functions: entries and draws are gone before the ids take memory.
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
            # It gets a copy: entries that it changed would be checked against themselves.
            kept = method(Group(number, entries.copy()), quota, context)
            require_kept(options.method, group, quota, kept)
        mark(np.asarray(kept).astype(np.uint64, copy=False), is_kept)
    return is_kept


def _keep_of_all(
    scores: npt.NDArray[Any],
    labels: npt.NDArray[np.int64],
    options: PruningOptions,
    sizes: list[int],
    total: int,
    data: SampleData,
) -> Ids:
    """Keep of one global order; classes that would keep too few get a group of their own."""
    group_of_class = np.zeros(len(sizes), dtype=np.int64)
    quotas = [total]
    while True:
        ids = keep_of_each(scores, labels, options, group_of_class, quotas, data)
        kept = np.bincount(labels[ids], minlength=len(sizes)).tolist()
        least = [min(size, options.min_per_class) for size in sizes]
        short = [label for label in range(len(sizes)) if kept[label] < least[label]]
        if not short:
            return ids
        for label in short:
            group_of_class[label] = len(quotas)
            quotas.append(least[label])
            quotas[0] -= least[label]


def _check_arguments(
    scores: npt.NDArray[Any], labels: npt.NDArray[np.int64], num_classes: int
) -> None:
    if len(labels) > MAX_SAMPLES:
        raise ConfigError(f"{len(labels):,} samples are given, expected at most {MAX_SAMPLES:,}")
    if scores.shape != labels.shape or labels.ndim != 1 or not len(labels):
        raise ConfigError(
            f"scores are of shape {scores.shape} and labels of {labels.shape}, expected one number "
            "and one label for each sample"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ConfigError(
            f"labels are {labels.min()} to {labels.max()}, expected 0 to {num_classes - 1}"
        )
    require_finite(scores)


def require_finite(scores: npt.NDArray[Any]) -> None:
    """Raise a ConfigError that names the samples whose score is nan or infinite."""
    is_finite = np.isfinite(scores)
    if is_finite.all():
        return
    bad = np.flatnonzero(~is_finite)
    more = f" and {len(bad) - _IDS_NAMED:,} more" if len(bad) > _IDS_NAMED else ""
    raise ConfigError(
        f"the score of sample {bad[0]} is {scores[bad[0]]} ({len(bad):,} such samples), expected "
        f"finite scores. They are samples {', '.join(map(str, bad[:_IDS_NAMED]))}{more}"
    )
