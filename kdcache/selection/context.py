"""The arguments of a selection method: a group of samples, and the data of all samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kdcache.errors import ConfigError
from kdcache.options import PruningOptions
from kdcache.rng import generator
from kdcache.selection.ranking import ID_MASK, Draws, Entries, Ids, draws


class Group(NamedTuple):
    """Samples that share a quota: those of a class, or with `--balance none` all samples."""

    number: int
    """The class, or 0 for all samples; unique in a selection."""
    entries: Entries
    """(n,) sorted entries: the sort key in the high 32 bits, the sample id in the low 32 bits."""

    def __len__(self) -> int:
        """Return n, the number of samples."""
        return self.entries.size

    @property
    def sample_ids(self) -> Ids:
        """(n,) int64, sorted by score, easiest first; ties are in the order of the ids."""
        return (self.entries & ID_MASK).astype(np.int64)


@dataclass(frozen=True)
class SampleData:
    """The data of each sample in a store. Arrays are read when they are first used."""

    scores: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    """Name -> (N,) float32 by sample id, higher = harder."""
    stats: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    """Name -> (N,) by sample id; `correct` is bool."""
    features: Callable[[], npt.NDArray[np.float16]] | None = None
    """Returns (N, F) penultimate activations of the clean view."""


class SelectionContext:
    """What a method may use beside the group.

    Args:
        options: the options of the selection.
        scores: (N,) by sample id; the groups are sorted by them.
        labels: (N,) int64 by sample id.
        data: the data of each sample in the store.

    Attributes:
        options: `keep`, `seed` and the options of the methods.
        order: (N,) by sample id, the scores by which the groups are sorted; higher is harder.
        labels: (N,) int64 by sample id, in [0, C).
        scores: name -> (N,) float32 by sample id, for every score of the store.
        stats: name -> (N,) by sample id: `correct`, `logit_std`, `logsumexp` and `top1`.
    """

    def __init__(
        self,
        options: PruningOptions,
        scores: npt.NDArray[Any],
        labels: npt.NDArray[np.int64],
        data: SampleData,
    ) -> None:
        self.options = options
        self.order = scores
        self.labels = labels
        self.scores = data.scores
        self.stats = data.stats
        self._features = data.features

    @cached_property
    def features(self) -> npt.NDArray[np.float16]:
        """(N, F) float16, the teacher's penultimate activations of the clean view.

        Raises:
            ConfigError: if the selection has no store.
            CacheMismatchError: if the store was built without --features.
        """
        if self._features is None:
            raise ConfigError(
                f"--method {self.options.method} needs features, expected a store that was built "
                "with --features",
                parameter="method",
                value=self.options.method,
            )
        return self._features()

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """(N,) bool, True if the teacher's largest logit is that of the label."""
        return self.stats["correct"]

    @cached_property
    def draws(self) -> Draws:
        """(N,) random uint32 by sample id; they depend on the seed only."""
        return draws(self.options.seed, "select", len(self.labels))

    def generator(self, stream: str, *key: int) -> np.random.Generator:
        """Return the random generator of a named stream, see `kdcache.rng.generator`.

        Args:
            stream: name of the stream.
            key: integers that distinguish generators of one stream, such as `group.number`.
        """
        return generator(self.options.seed, f"select/{stream}", *key)


Method = Callable[[Group, int, SelectionContext], npt.NDArray[Any]]
"""(group, quota, context) -> `quota` sample ids of the group, in any order. The built-in methods
return entries of the group, which saves a copy of the ids."""


def require_kept(method: str, group: Group, quota: int, kept: object) -> None:
    """Check the ids that a user's method returned.

    Raises:
        ConfigError: if they are not `quota` different sample ids of the group.
    """
    rule = f"expected {quota:,} different sample ids of the group's {len(group):,}"
    found = np.asarray(kept)
    if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer):
        raise ConfigError(
            f"method {method} returned {found.dtype} of shape {found.shape} for group "
            f"{group.number}, {rule}"
        )
    foreign = np.setdiff1d(found, group.sample_ids)
    if len(foreign):
        raise ConfigError(
            f"method {method} returned sample {foreign[0]} for group {group.number}, which is not "
            f"in it, {rule}"
        )
    if len(found) != quota or len(np.unique(found)) != quota:
        raise ConfigError(
            f"method {method} returned {len(found):,} sample ids for group {group.number}, of "
            f"which {len(np.unique(found)):,} are different, {rule}"
        )
