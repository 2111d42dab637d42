"""`kdcache verify`: read every byte of a workspace once, and name the damaged files."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from kdcache.data.beton_manifest import manifest_path, names_path
from kdcache.data.check import check_beton
from kdcache.data.digests import digests_path
from kdcache.errors import (
    CacheCorruptError,
    ConfigError,
    DatasetError,
    KDCacheError,
    MissingFileError,
)
from kdcache.options import VerifyOptions
from kdcache.progress import logger
from kdcache.results import Result
from kdcache.store.build.workspace_files import check_files
from kdcache.store.format.layout import existing_views, is_complete, open_group
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
    files: int
    """Other checked files: manifests, subsets, score files, weights and configs of runs."""
    store: Path | str | None
    """The named store, else the last one built, if there is one."""
    stores: tuple[Path | str, ...]
    """All checked stores."""
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
    """Check every file of a workspace; repair one store, or compare it with its teacher.

    With `store`, `teacher` or `repair`, only that store is checked beside the other files.

    Raises:
        ConfigError: if there is nothing to verify, or no store to repair or to compare.
        DatasetError: if a beton is damaged; names the samples and the command that packs it again.
        CacheCorruptError: if a file is damaged and was not repaired; names it.
        CacheMismatchError: if a repair would give other rows; nothing is removed.
        TeacherError: if the teacher gives other logits than the stored ones.
    """
    started = time.perf_counter()
    workspace = Workspace(Path(options.workspace))
    named = _named_store(options, workspace)
    checks = [check_beton(path) for path in _betons(workspace)]
    errors: list[Exception] = [DatasetError(check.error) for check in checks if check.error]
    files = list(check_files(workspace))
    errors += [CacheCorruptError(file.error) for file in files if file.error]
    stores = _stores(workspace, errors) if named is None else [named]
    if not checks and not files and not stores and not errors:
        raise ConfigError(
            f"{workspace.root} holds no beton and no store, expected something to verify. "
            "Run kdcache pack SOURCE, or name a workspace with --workspace"
        )
    repaired: list[str] = []
    for location in stores:
        # A repair needs undamaged images; without them the damage is only reported.
        try:
            damaged = _damaged(location)
            if damaged and (errors or not options.repair):
                errors.append(CacheCorruptError(_describe(location, damaged)))
            elif damaged:
                repaired = _repair(location, damaged, options, workspace)
        except (KDCacheError, OSError) as error:
            errors.append(error)
    for other in errors[1:]:
        logger.warning("%s", other)
    if errors:
        raise errors[0]
    compared = None
    if options.teacher and named is not None:
        from kdcache.store.build.verify_teacher import compare_with_teacher  # loads torch

        compared = compare_with_teacher(named, options, workspace)
    return VerifyResult(
        images=sum(check.samples for check in checks),
        files=len(files),
        store=stores[0] if stores else None,
        stores=tuple(stores),
        repaired=tuple(repaired),
        rows_compared=compared.rows if compared else None,
        largest_difference=compared.largest_difference if compared else None,
        bound=compared.bound if compared else None,
        seconds=round(time.perf_counter() - started, 3),
    )


def _betons(workspace: Workspace) -> list[Path]:
    """Return all betons of a workspace, packed subsets last.

    A beton counts if any of its files is there, so that a lost one is found.
    """
    subsets = workspace.subset("any").parent
    splits = [
        beton
        for beton in (workspace.beton("train"), workspace.beton("val"))
        if any(of(beton).exists() for of in (Path, manifest_path, digests_path, names_path))
    ]
    packed = {path.with_suffix(".beton") for path in subsets.glob("*.json")}
    return [*splits, *sorted(packed | set(subsets.glob("*.beton")))]


def _named_store(options: VerifyOptions, workspace: Workspace) -> Location | None:
    """Return the only store to check; None for all stores of the workspace."""
    if not (options.store or options.teacher or options.repair):
        return None
    location = parse_location(options.store) if options.store else workspace.require_store(None)
    if not exists(location) and not (isinstance(location, Path) and location.is_dir()):
        raise MissingFileError(f"{location} does not exist, expected a logit store")
    return location


def _stores(workspace: Workspace, errors: list[Exception]) -> list[Location]:
    """Return the stores of a workspace, the last one built first, which may lie elsewhere."""
    found: list[Location] = [path.resolve() for path in workspace.root.glob("stores/*.zarr")]
    found.sort(key=str)
    try:
        last = workspace.recall("store")
    except CacheCorruptError:  # reported with the other files
        last = None
    if last is None:
        return found
    if isinstance(last, Path) and not last.is_dir():
        errors.append(MissingFileError(f"{last} does not exist, expected a logit store"))
        return found
    return [last, *(location for location in found if location != last)]


def _damaged(location: Location) -> list[Damage]:
    group, manifest = open_group(open_zarr_store(location, read_only=True), path=str(location))
    views = existing_views(group)
    unfinished = [view for view in views if not is_complete(group, view)]
    if unfinished or not views:
        logger.warning(
            "%s is unfinished: it holds %d of %d views. What there is was checked; run "
            "kdcache build-logits again with the same arguments",
            location,
            len(views) - len(unfinished),
            len(views),
        )
    return find_damage(group, manifest)


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

    repaired: list[str] = []
    # Twice: the shards of an array whose zarr.json was damaged can be checked afterwards only.
    for _ in range(2):
        logger.info("%s", _describe(location, damaged))
        repair_store(location, damaged, options, workspace)
        repaired += [key for key, _ in damaged if key not in repaired]
        if not (damaged := _damaged(location)):
            return repaired
    raise CacheCorruptError(_describe(location, damaged))
