"""`kdcache verify`: reads every byte of a store and of the betons, and names what is damaged."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from kdcache.data.beton import Beton, open_beton
from kdcache.data.check import check_beton
from kdcache.errors import CacheCorruptError, ConfigError, DatasetError, TeacherError
from kdcache.files import file_lock
from kdcache.options import BuildLogitsOptions, VerifyOptions
from kdcache.progress import logger
from kdcache.store.build import build_store
from kdcache.store.inspection import Damage, find_damage, views_found
from kdcache.store.layout import FEATURES, open_group
from kdcache.store.location import Location, as_location, list_keys, open_place
from kdcache.store.logit_store import LogitStore
from kdcache.store.manifest import StoreManifest
from kdcache.store.opening import store_lock
from kdcache.store.recheck import Recheck, recheck
from kdcache.store.repair import remove_damaged
from kdcache.store.shards import read_whole
from kdcache.teacher.forward import TeacherForward, resolve_device
from kdcache.teacher.teacher import Teacher, open_teacher
from kdcache.workspace import Workspace

NAMED = 10
"""Damaged keys that a message names; the others are counted."""


def verify(options: VerifyOptions) -> dict[str, Any]:
    """Check the betons of a workspace and one store; repair the store, or ask its teacher again.

    Returns:
        `images` (checked), `store` (its path; None where the workspace has none), `repaired` (keys
        that were made again), `rows_compared`, `largest_difference` and `bound` (of --teacher, else
        None), `seconds`.

    Raises:
        ConfigError: if there is nothing to verify, or no store to repair or to ask about.
        DatasetError: if a beton is damaged; names the samples and the command that packs it anew.
        CacheCorruptError: if the store is damaged, and was not or could not be repaired.
        TeacherError: if the teacher answers otherwise than the store says.
    """
    started = time.perf_counter()
    workspace = Workspace(options.workspace)
    betons = [workspace.beton(split) for split in ("train", "val")]
    checks = [check_beton(path) for path in betons if path.exists()]
    errors = [check.error for check in checks if check.error is not None]
    kind = DatasetError if errors else CacheCorruptError
    location = _location(options, workspace)
    if not checks and location is None:
        raise ConfigError(
            f"{workspace.root} holds no beton and no store, expected something to verify. "
            "Run kdcache pack SOURCE, or name a workspace with --workspace"
        )
    repaired: list[str] = []
    if location is not None:
        # Repair needs whole images; what is wrong with the store is said before.
        damaged = _damaged(location)
        if damaged and (errors or not options.repair):
            errors.append(_describe(location, damaged))
        elif damaged:
            repaired = _repair(location, damaged, options, workspace)
    for error in errors:
        logger.warning("%s", error)
    if errors:
        raise kind(errors[0])
    compared = None
    if options.teacher is not None and location is not None:
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


def _location(options: VerifyOptions, workspace: Workspace) -> Location | None:
    if options.store is not None:
        return as_location(options.store)
    if options.teacher is not None or options.repair or workspace.recall("store") is not None:
        return workspace.require_store(None)
    return None


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
        spec = options.teacher or _teacher(manifest)
        found = _open_teacher(spec, manifest, options, workspace, beton).digest
        if found != manifest.teacher_digest:
            raise TeacherError(
                f"{spec} is another teacher than that of {location}: sha256 {found[:12]}, expected "
                f"{manifest.teacher_digest[:12]}. Nothing was changed; name the right one with "
                "--teacher"
            )
        views = max(views_found(list_keys(group.store)), default=0)
        remove_damaged(group, manifest, damaged)
        rows = _rows(group, manifest)
        features = FEATURES in group or any(key.startswith(FEATURES) for key, _ in damaged)
    build_store(
        BuildLogitsOptions(
            workspace=options.workspace,
            teacher=spec,
            arch=options.arch,
            store=str(location),
            views=views,
            features=features,
            codec=manifest.codec,
            policy=manifest.policy,
            view_seed=manifest.view_seed,
            image_size=manifest.image_size,
            precision=manifest.precision,
            device=options.device,
            num_workers=options.num_workers,
        ),
        workspace,
        beton,
        rows,
    )
    if left := _damaged(location):
        raise CacheCorruptError(_describe(location, left))
    return [key for key, _ in damaged]


def _teacher(manifest: StoreManifest) -> str:
    """Return what named the store's teacher: module:callable, or a name in the workspace."""
    return manifest.teacher_arch if ":" in manifest.teacher_arch else manifest.teacher


def _open_teacher(
    spec: str, manifest: StoreManifest, options: VerifyOptions, workspace: Workspace, beton: Beton
) -> Teacher:
    return open_teacher(
        spec,
        arch=options.arch,
        workspace=workspace,
        data=beton.manifest,
        image_size=manifest.image_size,
    )


def _rows(group: zarr.Group, manifest: StoreManifest) -> npt.NDArray[np.int64]:
    if manifest.rows == manifest.samples:
        return np.arange(manifest.samples, dtype=np.int64)
    return read_whole(group, "sample_ids")


def _ask_again(location: Location, options: VerifyOptions, workspace: Workspace) -> Recheck:
    store = LogitStore.open(location)
    beton = open_beton(workspace.require_beton())
    about = store.manifest
    teacher = _open_teacher(str(options.teacher), about, options, workspace, beton)
    forward = TeacherForward(
        teacher.model,
        num_classes=about.classes,
        mean=about.mean,
        std=about.std,
        device=resolve_device(options.device),
        precision=about.precision,
    )
    found = recheck(store, beton, forward, rows=options.rows, seed=options.seed)
    if found.differing:
        raise TeacherError(
            f"{options.teacher} answers otherwise than {location} says for {found.differing:,} of "
            f"{found.rows:,} rows; the largest difference is {found.largest_difference:.3g}, "
            f"expected at most {found.bound:.3g} at {about.precision}. The store was built by "
            f"{about.teacher} (sha256 {about.teacher_digest[:12]}), this one is "
            f"{teacher.digest[:12]}"
        )
    return found
