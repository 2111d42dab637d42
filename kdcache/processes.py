"""Find this process's rank from the environment variables of its launcher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from kdcache.errors import ConfigError


class World(NamedTuple):
    """This process's rank among the processes that were started together."""

    rank: int
    """Rank of this process, in [0, world_size)."""
    world_size: int
    """Number of processes, at least 1."""


def torchrun_world(environment: Mapping[str, str]) -> World | None:
    """Return the rank and world size that torchrun set; None without torchrun.

    Raises:
        ConfigError: if RANK and WORLD_SIZE are both set and 0 <= RANK < WORLD_SIZE fails.
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
    """Return the number of processes that Slurm's srun started, this one included; else 1.

    SLURM_NTASKS is no help: it is also set in a batch script, which is one process.
    """
    count = environment.get("SLURM_STEP_NUM_TASKS", "")
    return int(count) if count.isdecimal() else 1
