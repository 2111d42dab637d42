"""Scores in, sample ids out: what each policy keeps of each class. Exact, deterministic.

A policy is a function of one sorted group of samples and the number to keep. What the groups are,
and their numbers, is the business of the balance (`kdcache.selection.quotas`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from kdcache.errors import ConfigError
from kdcache.options import Balance, Method
from kdcache.selection.beta import DEFAULT_CONCENTRATION, beta, default_peak
from kdcache.selection.class_adaptive import error_densities
from kdcache.selection.quotas import class_quotas, kept_total
from kdcache.selection.ranking import MAX_SAMPLES, Draws, Entries, Ids, draws, mark, rank
from kdcache.selection.stratified import stratified
from kdcache.selection.windows import easy, hard, medium, window

_IDS_NAMED = 10

GroupPolicy = Callable[[Entries, int], Entries]
"""(sorted entries of a group, number to keep) -> the entries to keep."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Which samples of a difficulty order to keep."""

    method: Method
    seed: int = 0
    """Of random draws."""
    start: float = 0.0
    """window: quantile of its first sample."""
    cut: float = 0.0
    """stratified: share of the hardest that is dropped first."""
    peak: float = 0.5
    """beta: quantile that is drawn most."""
    concentration: float = DEFAULT_CONCENTRATION
    """beta: how narrow the distribution is; 0 draws all alike."""

    @property
    def draws(self) -> bool:
        """Whether chance has a part in it."""
        return self.method in ("random", "class-adaptive", "stratified", "beta")


def select_ids(
    scores: npt.NDArray[Any],
    labels: npt.NDArray[np.int64],
    *,
    method: Method,
    keep: float,
    balance: Balance = "proportional",
    seed: int = 0,
    num_classes: int,
    min_per_class: int = 0,
    start: float | None = None,
    cut: float = 0.0,
    peak: float | None = None,
    concentration: float = DEFAULT_CONCENTRATION,
    correct: npt.NDArray[np.bool_] | None = None,
) -> Ids:
    """Return the sample ids to keep.

    A larger share keeps all that a smaller one keeps, with every method whose options stay the
    same (the peak of `beta` too), where no class keeps fewer: with `class` and `none` always; with
    `proportional` where every class grows by a sample, because by largest remainder a class may
    lose one when the total grows by less.

    Args:
        scores: (N,) finite numbers, higher = harder. Ties are in the order of the sample ids.
        labels: (N,) in [0, C).
        method: see `kdcache.options.SelectOptions`.
        keep: share to keep, in (0, 1].
        balance: `proportional`, `class` or `none` (one global order).
        seed: of random draws.
        num_classes: C.
        min_per_class: each class keeps at least this many, or all where it has fewer.
        start: of `window`, the quantile of its first sample.
        cut: of `stratified`, the share of the hardest that is dropped first.
        peak: of `beta`, the quantile that is drawn most; easier where less is kept when left out.
        concentration: of `beta`.
        correct: (N,) whether the teacher is right, for `class-adaptive`.

    Returns:
        (floor(keep N + 0.5),) int64, sorted.

    Raises:
        ConfigError: if an argument is outside its range, a score is not finite (names the samples),
            or `min_per_class` asks for more than is kept in all.
    """
    _check_arguments(scores, labels, method, balance, num_classes)
    policy = Policy(
        method=method,
        seed=seed,
        start=0.0 if start is None else start,
        cut=cut,
        peak=default_peak(keep) if peak is None else peak,
        concentration=concentration,
    )
    total = kept_total(len(labels), keep)
    sizes = np.bincount(labels, minlength=num_classes).tolist()
    reserved = sum(min(size, min_per_class) for size in sizes)
    if reserved > total:
        raise ConfigError(
            f"--min-per-class is {min_per_class}, which keeps {reserved:,} samples of "
            f"{num_classes:,} classes, expected at most {total:,}, what --keep {keep:g} keeps in "
            "all. Keep more, or ask for fewer of each class"
        )
    if balance != "none":
        densities = None
        if method == "class-adaptive":
            if correct is None:
                raise ConfigError("correct is None, expected the teacher's stats['correct']")
            densities = error_densities(correct, labels, num_classes)
        quotas = class_quotas(
            sizes, total, balance, min_per_class=min_per_class, densities=densities
        )
        return keep_of_each(scores, labels, policy, np.arange(num_classes), quotas)
    return _keep_of_all(scores, labels, policy, sizes, total, min_per_class)


def keep_of_each(
    scores: npt.NDArray[Any],
    labels: npt.NDArray[np.int64],
    policy: Policy,
    group_of_class: npt.NDArray[np.int64],
    quotas: list[int],
) -> Ids:
    """Return the sample ids to keep, sorted.

    Args:
        scores: (N,) finite.
        labels: (N,) in [0, C).
        policy: what to keep of each group.
        group_of_class: (C,) group of each class's samples.
        quotas: how many to keep of each group; at most its size.
    """
    # In two functions: entries and draws are gone before the ids take memory.
    return np.flatnonzero(_kept_mask(scores, labels, policy, group_of_class, quotas))


def _kept_mask(
    scores: npt.NDArray[Any],
    labels: npt.NDArray[np.int64],
    policy: Policy,
    group_of_class: npt.NDArray[np.int64],
    quotas: list[int],
) -> npt.NDArray[np.bool_]:
    drawn = draws(policy.seed, "select", len(labels)) if policy.draws else None
    keys = scores if drawn is None or policy.method in ("stratified", "beta") else drawn
    groups = rank(keys, labels, group_of_class, len(quotas)).groups()
    keep_in_group = _group_policy(policy, scores, drawn)
    is_kept = np.zeros(len(labels), dtype=bool)
    for group, quota in zip(groups, quotas, strict=True):
        if quota:
            mark(keep_in_group(group, quota), is_kept)
    return is_kept


def _group_policy(policy: Policy, scores: npt.NDArray[Any], drawn: Draws | None) -> GroupPolicy:
    policies: dict[Method, GroupPolicy] = {
        "random": easy,
        "class-adaptive": easy,
        "easy": easy,
        "hard": hard,
        "medium": medium,
        "window": partial(window, start=policy.start),
    }
    if drawn is not None:
        policies["stratified"] = partial(stratified, scores=scores, draws=drawn, cut=policy.cut)
        policies["beta"] = partial(
            beta, draws=drawn, peak=policy.peak, concentration=policy.concentration
        )
    return policies[policy.method]


def _keep_of_all(
    scores: npt.NDArray[Any],
    labels: npt.NDArray[np.int64],
    policy: Policy,
    sizes: list[int],
    total: int,
    min_per_class: int,
) -> Ids:
    """Keep of one global order; classes that would keep too few get a group of their own."""
    group_of_class = np.zeros(len(sizes), dtype=np.int64)
    quotas = [total]
    while True:
        ids = keep_of_each(scores, labels, policy, group_of_class, quotas)
        kept = np.bincount(labels[ids], minlength=len(sizes)).tolist()
        least = [min(size, min_per_class) for size in sizes]
        short = [label for label in range(len(sizes)) if kept[label] < least[label]]
        if not short:
            return ids
        for label in short:
            group_of_class[label] = len(quotas)
            quotas.append(least[label])
            quotas[0] -= least[label]


def _check_arguments(
    scores: npt.NDArray[Any],
    labels: npt.NDArray[np.int64],
    method: str,
    balance: str,
    num_classes: int,
) -> None:
    for name, value, known in (
        ("method", method, get_args(Method)),
        ("balance", balance, get_args(Balance)),
    ):
        if value not in known:
            raise ConfigError(f"{name} is {value!r}, expected one of {', '.join(known)}")
    if method == "class-adaptive" and balance == "none":
        raise ConfigError(
            "balance is none, but class-adaptive divides the samples among the classes, expected "
            "proportional (density as 1 - recall) or class (number as 1 - recall)"
        )
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
