"""`kdcache verify`: reads every byte of a store and of the betons, and names what is damaged."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from kdcache.data.check import check_beton
from kdcache.errors import CacheCorruptError, ConfigError, DatasetError, KDCacheError
from kdcache.options import VerifyOptions
from kdcache.progress import logger
from kdcache.store.format.layout import open_group
from kdcache.store.format.location import Location, exists, open_zarr_store, parse_location
from kdcache.store.upkeep.inspection import Damage, find_damage
from kdcache.workspace import Workspace

MAX_LISTED = 10
"""Damaged keys that a message names; the others are counted."""


def verify(options: VerifyOptions) -> dict[str, Any]:
    """Check the betons of a workspace and one store; repair the store, or ask its teacher again.

    Returns:
        `images` (checked, of the splits and the packed subsets), `store` (its path; None where the
        workspace has none), `repaired` (keys that were made again), `rows_compared`,
        `largest_difference` and `bound` (of --teacher, as shares of a row's range, else None),
        `seconds`.

    Raises:
        ConfigError: if there is nothing to verify, or no store to repair or to ask about.
        DatasetError: if a beton is damaged; names the samples and the command that packs it anew.
        CacheCorruptError: if the store is damaged, and was not or could not be repaired.
        CacheMismatchError: if a repair would not give the store's own rows; nothing is removed.
        TeacherError: if the teacher answers otherwise than the store says.
    """
    started = time.perf_counter()
    workspace = Workspace(options.workspace)
    store_error: Exception | None = None
    location = None
    try:
        location = _location(options, workspace)
    except (KDCacheError, FileNotFoundError) as error:
        if options.store or options.teacher or options.repair:
            raise
        store_error = error  # of the last store built, for which nobody asked: betons are read too
    checks = [check_beton(path) for path in _betons(workspace)]
    errors: list[Exception] = [DatasetError(check.error) for check in checks if check.error]
    if not checks and location is None and store_error is None:
        raise ConfigError(
            f"{workspace.root} holds no beton and no store, expected something to verify. "
            "Run kdcache pack SOURCE, or name a workspace with --workspace"
        )
    repaired: list[str] = []
    if location is not None:
        # Repair needs whole images; what is wrong with the store is said before.
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
    return {
        "images": sum(check.samples for check in checks),
        "store": None if location is None else str(location),
        "repaired": repaired,
        "rows_compared": compared.rows if compared else None,
        "largest_difference": compared.largest_difference if compared else None,
        "bound": compared.bound if compared else None,
        "seconds": round(time.perf_counter() - started, 3),
    }


def _betons(workspace: Workspace) -> list[Path]:
    """Return every beton of a workspace, those of packed subsets last."""
    splits = [workspace.beton(split) for split in ("train", "val")]
    subsets = sorted(workspace.subset("any").parent.glob("*.beton"))
    return [path for path in (*splits, *subsets) if path.exists()]


def _location(options: VerifyOptions, workspace: Workspace) -> Location | None:
    asked = options.store or options.teacher or options.repair
    if not asked and workspace.recall("store") is None:
        return None
    location = parse_location(options.store) if options.store else workspace.require_store(None)
    if not exists(location):
        raise FileNotFoundError(f"{location} does not exist, expected a logit store")
    return location


def _damaged(location: Location) -> list[Damage]:
    return find_damage(*open_group(open_zarr_store(location, read_only=True), path=str(location)))


def _describe(location: Location, damaged: list[Damage]) -> str:
    named = "; ".join(f"{key}: {what}" for key, what in damaged[:MAX_LISTED])
    more = f" and {len(damaged) - MAX_LISTED} more" if len(damaged) > MAX_LISTED else ""
    return (
        f"{location} has {len(damaged)} damaged files: {named}{more}. Run kdcache verify --repair, "
        "which builds them again with the store's teacher"
    )


def _repair(
    location: Location, damaged: list[Damage], options: VerifyOptions, workspace: Workspace
) -> list[str]:
    """Build what is damaged again; return its keys."""
    from kdcache.store.build.verify_teacher import repair_store  # loads torch

    logger.info("%s", _describe(location, damaged))
    repair_store(location, damaged, options, workspace)
    if left := _damaged(location):
        raise CacheCorruptError(_describe(location, left))
    return [key for key, _ in damaged]
