"""What a selection method is given: a group of samples, and everything that is known of them."""

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
    """Samples that share one quota: those of a class, or all of them with `--balance none`."""

    number: int
    """The class, or 0 for all samples. It tells the groups of one selection apart."""
    entries: Entries
    """(n,) the keys that were sorted, each with its sample id in its low 32 bits."""

    def __len__(self) -> int:
        """Return n, the number of samples."""
        return self.entries.size

    @property
    def sample_ids(self) -> Ids:
        """(n,) int64, sorted by score: the easiest first, ties to the smaller id."""
        return (self.entries & ID_MASK).astype(np.int64)


@dataclass(frozen=True)
class SampleData:
    """What a store knows of each sample; arrays are read when they are first used."""

    scores: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    """Name -> (N,) float32 by sample id, higher = harder."""
    stats: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    """Name -> (N,) by sample id; `correct` is bool."""
    features: Callable[[], npt.NDArray[np.float16]] | None = None
    """Returns (N, F) penultimate activations of the clean view."""


class SelectionContext:
    """Everything beside the group that a method may use.

    Args:
        options: of the selection.
        scores: (N,) by sample id, those that the groups are sorted by.
        labels: (N,) int64 by sample id.
        data: what the store knows of each sample.

    Attributes:
        options: `keep`, `seed` and the options of the methods.
        order: (N,) by sample id, the scores that the groups are sorted by, higher = harder.
        labels: (N,) int64 by sample id, in [0, C).
        scores: name -> (N,) float32 by sample id: every score of the store.
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
            ConfigError: if there is no store.
            CacheMismatchError: if the store was built without --features.
        """
        if self._features is None:
            raise ConfigError(
                f"--method {self.options.method} asks for features, which are not given, expected "
                "a store that was built with --features",
                parameter="method",
                value=self.options.method,
            )
        return self._features()

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """(N,) True where the teacher's largest logit is the label's."""
        return self.stats["correct"]

    @cached_property
    def draws(self) -> Draws:
        """(N,) uint32 by sample id, random, the same for every method."""
        return draws(self.options.seed, "select", len(self.labels))

    def generator(self, stream: str, *key: int) -> np.random.Generator:
        """Return the random generator of one purpose, see `kdcache.rng.generator`.

        Args:
            stream: name of the purpose.
            key: integers that tell draws of one purpose apart, such as `group.number`.
        """
        return generator(self.options.seed, f"select/{stream}", *key)


Method = Callable[[Group, int, SelectionContext], npt.NDArray[Any]]
"""(group, number to keep, context) -> the sample ids to keep, in any order. Our own methods return
entries of the group instead, which spares a copy of the ids."""


def require_kept(method: str, group: Group, quota: int, kept: object) -> None:
    """Check what a method of the user's own returned.

    Raises:
        ConfigError: if it is not `quota` different sample ids of the group.
    """
    rule = f"expected {quota:,} different sample ids of the group's {len(group):,}"
    found = np.asarray(kept)
    if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer):
        raise ConfigError(
            f"method {method} returned {found.dtype} of shape {found.shape} for group "
            f"{group.number}, {rule}"
        )
    strange = np.setdiff1d(found, group.sample_ids)
    if len(strange):
        raise ConfigError(
            f"method {method} returned sample {strange[0]} for group {group.number}, which is not "
            f"in it, {rule}"
        )
    if len(found) != quota or len(np.unique(found)) != quota:
        raise ConfigError(
            f"method {method} returned {len(np.unique(found)):,} different sample ids in "
            f"{len(found):,} for group {group.number}, {rule}"
        )
