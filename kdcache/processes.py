"""Which of several processes this one is, by what their launcher says in the environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from kdcache.errors import ConfigError


class World(NamedTuple):
    """The processes that were started together, and which of them this one is."""

    rank: int
    """Of this process, in [0, world_size)."""
    world_size: int
    """How many processes there are, at least 1."""


def torchrun_world(environment: Mapping[str, str]) -> World | None:
    """Return what torchrun said of its processes, None where torchrun did not start it.

    Raises:
        ConfigError: if RANK and WORLD_SIZE are both set and are no such numbers.
    """
    rank, world_size = environment.get("RANK"), environment.get("WORLD_SIZE")
    if rank is None or world_size is None:
        return None
    if not (rank.isdecimal() and world_size.isdecimal() and int(rank) < int(world_size)):
        raise ConfigError(
            f"RANK is {rank!r} and WORLD_SIZE is {world_size!r}, expected 0 <= RANK < WORLD_SIZE, "
            "as torchrun sets them. Unset both"
        )
    return World(int(rank), int(world_size))


def srun_tasks(environment: Mapping[str, str]) -> int:
    """Return how many processes Slurm's srun started together with this one, itself included.

    SLURM_NTASKS does not tell: it is also set in a batch script, which is one process.
    """
    count = environment.get("SLURM_STEP_NUM_TASKS", "")
    return int(count) if count.isdecimal() else 1
