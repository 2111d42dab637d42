"""`kdcache verify`: reads every byte of a store and of the betons, and names what is damaged."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from kdcache.data.beton import Beton, open_beton
from kdcache.data.check import check_beton
from kdcache.errors import (
    CacheCorruptError,
    ConfigError,
    DatasetError,
    KDCacheError,
    TeacherError,
)
from kdcache.files import differences, file_lock
from kdcache.options import BuildLogitsOptions, VerifyOptions
from kdcache.progress import logger
from kdcache.store.build import build_store
from kdcache.store.inspection import Damage, find_damage
from kdcache.store.layout import FEATURES, has_array, open_group, views_found
from kdcache.store.location import Location, as_location, exists, list_keys, open_place
from kdcache.store.logit_store import LogitStore
from kdcache.store.manifest import CONDITIONS, StoreManifest, require_equal
from kdcache.store.opening import store_lock
from kdcache.store.plan import machine_conditions
from kdcache.store.recheck import Recheck, recheck
from kdcache.store.repair import needs_teacher, remove_damaged
from kdcache.store.shards import read_whole
from kdcache.teacher.ensemble import Ensemble, open_ensemble
from kdcache.teacher.forward import resolve_device
from kdcache.workspace import Workspace

NAMED = 10
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
        compared = _ask_again(location, options, workspace)
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
    location = as_location(options.store) if options.store else workspace.require_store(None)
    if not exists(location):
        raise FileNotFoundError(f"{location} does not exist, expected a logit store")
    return location


def _open(location: Location, *, read_only: bool) -> tuple[zarr.Group, StoreManifest]:
    return open_group(open_place(location, read_only=read_only), path=str(location))


def _damaged(location: Location) -> list[Damage]:
    return find_damage(*_open(location, read_only=True))


def _describe(location: Location, damaged: list[Damage]) -> str:
    named = "; ".join(f"{key}: {what}" for key, what in damaged[:NAMED])
    more = f" and {len(damaged) - NAMED} more" if len(damaged) > NAMED else ""
    return (
        f"{location} has {len(damaged)} damaged files: {named}{more}. Run kdcache verify --repair, "
        "which builds them again with the store's teacher"
    )


def _repair(
    location: Location, damaged: list[Damage], options: VerifyOptions, workspace: Workspace
) -> list[str]:
    """Build what is damaged again; return its keys."""
    beton = open_beton(workspace.require_beton())
    logger.info("%s", _describe(location, damaged))
    with file_lock(store_lock(location, workspace), purpose="verify --repair"):
        group, manifest = _open(location, read_only=False)
        specs = options.teacher or tuple(manifest.teachers)
        _require_same_teacher(specs, location, manifest, options, workspace, beton)
        features = has_array(group, FEATURES) or any(key.startswith(FEATURES) for key, _ in damaged)
        build = BuildLogitsOptions(
            workspace=options.workspace,
            teacher=specs,
            arch=options.arch,
            ensemble=manifest.ensemble or "probabilities",
            store=str(location),
            views=max(views_found(list_keys(group.store)), default=0),
            features=features,
            codec=manifest.codec,
            policy=manifest.policy,
            view_seed=manifest.view_seed,
            image_size=manifest.image_size,
            teacher_size=manifest.teacher_size,
            precision=manifest.precision,
            device=options.device,
            num_workers=options.num_workers,
            allow_mixed=options.allow_mixed,
        )
        if needs_teacher(group, manifest, damaged):
            _require_same_build(build, location, manifest, beton)
        remove_damaged(group, manifest, damaged)
        rows = _rows(group, manifest)
    build_store(build, workspace, beton, rows)
    if left := _damaged(location):
        raise CacheCorruptError(_describe(location, left))
    return [key for key, _ in damaged]


def _require_same_build(
    build: BuildLogitsOptions, location: Location, manifest: StoreManifest, beton: Beton
) -> None:
    """Check, before anything is removed, that the build that follows would not refuse."""
    here = replace(
        manifest,
        data_fingerprint=beton.manifest.fingerprint,
        **machine_conditions(resolve_device(build.device)),
    )
    remedy = "Nothing was changed. Repair the store where it was built"
    require_equal(manifest, here, ("data_fingerprint",), path=str(location), remedy=remedy)
    if not build.allow_mixed:
        remedy += ", or go on with --allow-mixed, which is recorded"
        require_equal(manifest, here, CONDITIONS, path=str(location), remedy=remedy)


def _require_same_teacher(
    specs: tuple[str, ...],
    location: Location,
    manifest: StoreManifest,
    options: VerifyOptions,
    workspace: Workspace,
    beton: Beton,
) -> None:
    """Check, before anything is removed, that what is made again would be the store's."""
    found = _open_teachers(specs, manifest, options, workspace, beton).digest
    if found != manifest.teacher_digest:
        raise TeacherError(
            f"{' + '.join(specs)} is another teacher than that of {location}: sha256 {found[:12]}, "
            f"expected {manifest.teacher_digest[:12]}. Nothing was changed; name the right one "
            "with --teacher"
        )


def _open_teachers(
    specs: tuple[str, ...],
    manifest: StoreManifest,
    options: VerifyOptions,
    workspace: Workspace,
    beton: Beton,
) -> Ensemble:
    found = open_ensemble(
        specs,
        archs=options.arch,
        mode=manifest.ensemble or "probabilities",
        workspace=workspace,
        data=beton.manifest,
        image_size=manifest.image_size,
        teacher_size=manifest.teacher_size,
    )
    shown = {
        "clean_share": found.clean_share,
        "mean": [member.mean for member in found.members],
        "std": [member.std for member in found.members],
    }
    if differ := differences(manifest.to_json(), shown):
        raise TeacherError(
            f"{' + '.join(specs)} is shown other images than the teacher of the store: {differ}. "
            f"Name it with --teacher as the store was built: {' + '.join(manifest.teachers)}"
        )
    return found


def _rows(group: zarr.Group, manifest: StoreManifest) -> npt.NDArray[np.int64]:
    if manifest.rows == manifest.samples:
        return np.arange(manifest.samples, dtype=np.int64)
    return read_whole(group, "sample_ids")


def _ask_again(location: Location, options: VerifyOptions, workspace: Workspace) -> Recheck:
    store = LogitStore.open(location)
    beton = open_beton(workspace.require_beton())
    about = store.manifest
    teacher = _open_teachers(options.teacher, about, options, workspace, beton)
    forward = teacher.forward(
        num_classes=about.classes,
        device=resolve_device(options.device),
        precision=about.precision,
    )
    found = recheck(
        store,
        beton,
        forward,
        rows=options.rows,
        seed=options.seed,
        num_workers=options.num_workers,
    )
    if found.differing:
        raise TeacherError(
            f"{' + '.join(options.teacher)} answers otherwise than {location} says for "
            f"{found.differing:,} of {found.rows:,} rows; the largest difference is "
            f"{found.largest_difference:.3g} of the row's range, expected at most "
            f"{found.bound:.3g} at {about.precision}. The store was built by {about.teacher} "
            f"(sha256 {about.teacher_digest[:12]}), this one is {teacher.digest[:12]}"
        )
    return found
