"""`kdcache verify`: read every byte of a store and of the betons, and name damaged files."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from kdcache.data.check import check_beton
from kdcache.errors import CacheCorruptError, ConfigError, DatasetError, KDCacheError
from kdcache.options import VerifyOptions
from kdcache.progress import logger
from kdcache.results import Result
from kdcache.store.format.layout import open_group
from kdcache.store.format.location import Location, exists, open_zarr_store, parse_location
from kdcache.store.upkeep.inspection import Damage, find_damage
from kdcache.workspace import Workspace

MAX_LISTED = 10
"""Number of damaged keys that a message lists; it counts the others."""


@dataclass(frozen=True, kw_only=True)
class VerifyResult(Result):
    """What `verify` has read, repaired and compared."""

    images: int
    """Checked images of the splits and of the packed subsets."""
    store: Path | str | None
    """The checked store, if there is one."""
    repaired: tuple[str, ...]
    """Keys of the store that were built again."""
    rows_compared: int | None
    """Rows whose logits the teacher computed again, with `teacher`."""
    largest_difference: float | None
    """Largest difference of these logits, as a fraction of the row's range."""
    bound: float | None
    """Largest allowed difference."""
    seconds: float


def verify(options: VerifyOptions) -> VerifyResult:
    """Check the betons of a workspace and one store; repair it, or compare it with its teacher.

    Raises:
        ConfigError: if there is nothing to verify, or no store to repair or to compare.
        DatasetError: if a beton is damaged; names the samples and the command that packs it again.
        CacheCorruptError: if the store is damaged and was not repaired.
        CacheMismatchError: if a repair would give other rows; nothing is removed.
        TeacherError: if the teacher gives other logits than the stored ones.
    """
    started = time.perf_counter()
    workspace = Workspace(Path(options.workspace))
    store_error: Exception | None = None
    location = None
    try:
        location = _location(options, workspace)
    except (KDCacheError, FileNotFoundError) as error:
        if options.store or options.teacher or options.repair:
            raise
        store_error = error  # the store was not named by the user: check the betons first
    checks = [check_beton(path) for path in _betons(workspace)]
    errors: list[Exception] = [DatasetError(check.error) for check in checks if check.error]
    if not checks and location is None and store_error is None:
        raise ConfigError(
            f"{workspace.root} holds no beton and no store, expected something to verify. "
            "Run kdcache pack SOURCE, or name a workspace with --workspace"
        )
    repaired: list[str] = []
    if location is not None:
        # A repair needs undamaged images; without them the damage is only reported.
        try:
            damaged = _damaged(location)
            if damaged and (errors or not options.repair):
                store_error = CacheCorruptError(_describe(location, damaged))
            elif damaged:
                repaired = _repair(location, damaged, options, workspace)
        except (KDCacheError, OSError) as error:
            store_error = error
    if store_error:
        errors.append(store_error)
    for other in errors[1:]:
        logger.warning("%s", other)
    if errors:
        raise errors[0]
    compared = None
    if options.teacher and location is not None:
        from kdcache.store.build.verify_teacher import compare_with_teacher  # loads torch

        compared = compare_with_teacher(location, options, workspace)
    return VerifyResult(
        images=sum(check.samples for check in checks),
        store=location,
        repaired=tuple(repaired),
        rows_compared=compared.rows if compared else None,
        largest_difference=compared.largest_difference if compared else None,
        bound=compared.bound if compared else None,
        seconds=round(time.perf_counter() - started, 3),
    )


def _betons(workspace: Workspace) -> list[Path]:
    """Return all betons of a workspace, packed subsets last."""
    splits = [workspace.beton(split) for split in ("train", "val")]
    subsets = sorted(workspace.subset("any").parent.glob("*.beton"))
    return [path for path in (*splits, *subsets) if path.exists()]


def _location(options: VerifyOptions, workspace: Workspace) -> Location | None:
    is_requested = options.store or options.teacher or options.repair
    if not is_requested and workspace.recall("store") is None:
        return None
    location = parse_location(options.store) if options.store else workspace.require_store(None)
    if not exists(location):
        raise FileNotFoundError(f"{location} does not exist, expected a logit store")
    return location


def _damaged(location: Location) -> list[Damage]:
    return find_damage(*open_group(open_zarr_store(location, read_only=True), path=str(location)))


def _describe(location: Location, damaged: list[Damage]) -> str:
    named = "; ".join(f"{key}: {problem}" for key, problem in damaged[:MAX_LISTED])
    more = f" and {len(damaged) - MAX_LISTED} more" if len(damaged) > MAX_LISTED else ""
    return (
        f"{location} has {len(damaged)} damaged files: {named}{more}. Run kdcache verify --repair, "
        "which builds them again with the store's teacher"
    )


def _repair(
    location: Location, damaged: list[Damage], options: VerifyOptions, workspace: Workspace
) -> list[str]:
    """Build the damaged keys again; return them."""
    from kdcache.store.build.verify_teacher import repair_store  # loads torch

    logger.info("%s", _describe(location, damaged))
    repair_store(location, damaged, options, workspace)
    if left := _damaged(location):
        raise CacheCorruptError(_describe(location, left))
    return [key for key, _ in damaged]
