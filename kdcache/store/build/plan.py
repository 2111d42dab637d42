"""Divide a build into shards and processes: which shards are missing, and who makes them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdcache.errors import ConfigError
from kdcache.processes import torchrun_world
from kdcache.store.writer import StoreWriter

MAX_VIEWS_PER_PASS = 9
"""Views of one block of rows that come from one decoding, and whose answers are kept in memory
together: the clean one and the 8 that are usual."""


@dataclass(frozen=True, eq=False)
class Shard:
    """A block of rows of one view that is still to be made."""

    view: int
    index: int
    rows: npt.NDArray[np.int64]
    """Sample ids."""


@dataclass(frozen=True)
class Part:
    """Blocks of rows that this process makes: every `count`-th, starting at `index`."""

    index: int = 0
    count: int = 1
    runs_concurrently: bool = False
    """The other parts are being made now, so that they can be waited for."""

    @property
    def is_whole(self) -> bool:
        """Whether there are no other parts."""
        return self.count == 1

    @classmethod
    def parse(cls, text: str | None, environment: Mapping[str, str]) -> Part:
        """Read `2/4`, the second of four parts; None is this process's rank of torchrun, or all.

        Raises:
            ConfigError: if it is no such text, or beside torchrun.
        """
        world = torchrun_world(environment)
        if world is not None:
            if text is not None:
                raise ConfigError(
                    f"--part is {text}, but torchrun already makes this process part "
                    f"{world.rank + 1}/{world.world_size}. Leave the option out"
                )
            return cls(world.rank, world.world_size, runs_concurrently=True)
        if text is None:
            return cls()
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise ConfigError(f"--part is {text!r}, expected one such as 2/4: the second of four")
        return cls(int(match[1]) - 1, int(match[2]))


def missing_work(writer: StoreWriter, views: Iterable[int], part: Part) -> list[Shard]:
    """Return the shards of some views that this part of the build is still to make."""
    size = writer.manifest.shard_rows
    work = []
    for view in views:
        ids = writer.sample_ids(view)
        work += [
            Shard(view, number, ids[number * size : (number + 1) * size])
            for number in writer.missing_shards(view)
            if number % part.count == part.index
        ]
    return work


def view_groups(work: list[Shard]) -> list[tuple[Shard, list[int]]]:
    """Return one shard of each block of rows, with the views that are made of it together.

    Views of the same rows come from one decoding of each image.
    """
    blocks: dict[bytes, list[Shard]] = {}
    for shard in work:
        blocks.setdefault(shard.rows.tobytes(), []).append(shard)
    return [
        (block[0], [shard.view for shard in block[first : first + MAX_VIEWS_PER_PASS]])
        for block in blocks.values()
        for first in range(0, len(block), MAX_VIEWS_PER_PASS)
    ]
