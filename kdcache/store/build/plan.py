"""List the missing shards of a build, and divide them among processes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdcache.errors import ConfigError
from kdcache.options import BuildLogitsOptions
from kdcache.processes import torchrun_world
from kdcache.store.writer import StoreWriter

MAX_VIEWS_PER_PASS = 1 + BuildLogitsOptions.views
"""Maximum number of views that are made from one decoding, and whose logits are in memory at the
same time: the clean view and the default 8."""


@dataclass(frozen=True, eq=False)
class Shard:
    """A block of rows of one view that is still missing."""

    view: int
    index: int
    rows: npt.NDArray[np.int64]
    """(n,) sample ids."""


@dataclass(frozen=True)
class Part:
    """Blocks of rows that this process makes: every `count`-th, starting at `index`."""

    index: int = 0
    count: int = 1
    runs_concurrently: bool = False
    """True if processes build the other parts at the same time, so that this one can wait."""

    @property
    def is_whole(self) -> bool:
        """True if there are no other parts."""
        return self.count == 1

    @classmethod
    def parse(cls, text: str | None, environment: Mapping[str, str]) -> Part:
        """Parse `2/4`, the second of four parts. None means the rank of torchrun, or all parts.

        Raises:
            ConfigError: if the text is malformed, or given under torchrun.
        """
        world = torchrun_world(environment)
        if world is not None:
            if text is not None:
                raise ConfigError(
                    parameter="part",
                    value=text,
                    problem=(
                        f"torchrun makes this process part {world.rank + 1}/{world.world_size}"
                    ),
                    remedy="Leave the option out",
                )
            return cls(world.rank, world.world_size, runs_concurrently=True)
        if text is None:
            return cls()
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise ConfigError(
                parameter="part", value=text, rule="one such as 2/4: the second of four"
            )
        return cls(int(match[1]) - 1, int(match[2]))


def missing_work(writer: StoreWriter, views: Iterable[int], part: Part) -> list[Shard]:
    """Return the missing shards of some views that belong to this part."""
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
    """Group shards by their rows: return one shard per block, with the views of the group.

    Views of the same rows are made from one decoding per image.
    """
    blocks: dict[bytes, list[Shard]] = {}
    for shard in work:
        blocks.setdefault(shard.rows.tobytes(), []).append(shard)
    return [
        (block[0], [shard.view for shard in block[first : first + MAX_VIEWS_PER_PASS]])
        for block in blocks.values()
        for first in range(0, len(block), MAX_VIEWS_PER_PASS)
    ]
