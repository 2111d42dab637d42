"""Repair a store, or compare it with its teacher, for `kdcache verify`.

This is a separate module because it loads torch.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import zarr

from kdcache.channels import NormalisationWords
from kdcache.compute.device import resolve_device
from kdcache.data.beton import Beton, open_beton
from kdcache.errors import TeacherError
from kdcache.identity import differences
from kdcache.locks import file_lock
from kdcache.options import BuildLogitsOptions, VerifyOptions, as_names
from kdcache.rng import keeps_torch_rng
from kdcache.store.build.build import build_store
from kdcache.store.build.opening import store_lock
from kdcache.store.build.target import machine_conditions
from kdcache.store.build.teacher_comparison import TeacherComparison, compare_rows
from kdcache.store.format.layout import FEATURES, expected_views, has_array, open_group
from kdcache.store.format.location import Location, list_keys, open_zarr_store
from kdcache.store.format.shards import read_whole
from kdcache.store.logit_store import LogitStore
from kdcache.store.manifest import CONDITIONS, StoreManifest, require_equal
from kdcache.store.upkeep.inspection import Damage
from kdcache.store.upkeep.repair import needs_teacher, remove_damaged
from kdcache.teacher.ensemble import Ensemble, open_ensemble
from kdcache.teacher.member_settings import TeacherOptions, recorded_normalisations
from kdcache.teacher.sources import find_teacher
from kdcache.workspace import Workspace


@keeps_torch_rng
def repair_store(
    location: Location, damaged: list[Damage], options: VerifyOptions, workspace: Workspace
) -> None:
    """Remove the damaged keys and build them again.

    Raises:
        CacheMismatchError: if the build would give other rows; nothing is removed.
        TeacherError: if this is not the store's teacher; nothing is removed.
    """
    beton = open_beton(workspace.require_beton())
    with file_lock(store_lock(location, workspace), purpose="verify --repair"):
        group, manifest = open_group(open_zarr_store(location, read_only=False), path=str(location))
        specs = as_names(options.teacher) or tuple(manifest.teachers)
        _require_same_teacher(specs, location, manifest, options, workspace, beton)
        recorded = _recorded_normalisations(specs, manifest, workspace)
        features = has_array(group, FEATURES) or any(key.startswith(FEATURES) for key, _ in damaged)
        build = BuildLogitsOptions(
            workspace=options.workspace,
            teacher=specs,
            arch=options.arch,
            stem=options.stem,
            teacher_output=options.teacher_output,
            teacher_mean=tuple(words.mean for words in recorded),
            teacher_std=tuple(words.std for words in recorded),
            ensemble=manifest.ensemble or BuildLogitsOptions.ensemble,
            store=str(location),
            views=max(expected_views(list_keys(group.store)), default=0),
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
        runs_teacher = needs_teacher(group, manifest, damaged)
        _require_same_build(build, location, manifest, beton, runs_teacher=runs_teacher)
        remove_damaged(group, manifest, damaged)
        rows = _rows(group, manifest)
    build_store(build, workspace, beton, rows)


@keeps_torch_rng
def compare_with_teacher(
    location: Location, options: VerifyOptions, workspace: Workspace
) -> TeacherComparison:
    """Compare a sample of the store's rows with the logits that its teacher gives now.

    Raises:
        TeacherError: if the teacher gives other logits, or uses other preprocessing.
    """
    store = LogitStore.open(location)
    beton = open_beton(workspace.require_beton())
    about = store.manifest
    teacher = _open_teachers(as_names(options.teacher), about, options, workspace, beton)
    forward = teacher.forward(
        num_classes=about.classes,
        device=resolve_device(options.device),
        precision=about.precision,
    )
    found = compare_rows(
        store,
        beton,
        forward,
        rows=options.rows,
        seed=options.seed,
        num_workers=options.num_workers,
    )
    if found.num_mismatched:
        raise TeacherError(
            f"{' + '.join(as_names(options.teacher))} gives other logits than {location} holds for "
            f"{found.num_mismatched:,} of {found.rows:,} rows; the largest difference is "
            f"{found.largest_difference:.3g} of the row's range, expected at most "
            f"{found.bound:.3g} at {about.precision}. The store was built by {about.teacher}, "
            f"{about.teacher_arch} (sha256 {about.teacher_digest[:12]}), this one is "
            f"{teacher.arch} ({teacher.digest[:12]})"
        )
    return found


def _require_same_build(
    build: BuildLogitsOptions,
    location: Location,
    manifest: StoreManifest,
    beton: Beton,
    *,
    runs_teacher: bool,
) -> None:
    """Check, before anything is removed, that the following build will be accepted."""
    here = replace(
        manifest,
        data_fingerprint=beton.manifest.fingerprint,
        **machine_conditions(resolve_device(build.device)),
    )
    remedy = "Nothing was changed. Repair the store where it was built"
    require_equal(manifest, here, ("data_fingerprint",), path=str(location), remedy=remedy)
    if runs_teacher and not build.allow_mixed:
        remedy += ", or use --allow-mixed, which is recorded"
        require_equal(manifest, here, CONDITIONS, path=str(location), remedy=remedy)


def _require_same_teacher(
    specs: tuple[str, ...],
    location: Location,
    manifest: StoreManifest,
    options: VerifyOptions,
    workspace: Workspace,
    beton: Beton,
) -> None:
    """Check, before anything is removed, that this is the store's teacher."""
    found = _open_teachers(specs, manifest, options, workspace, beton).digest
    if found != manifest.teacher_digest:
        raise TeacherError(
            f"{' + '.join(specs)} is not the teacher of {location}: sha256 {found[:12]}, "
            f"expected {manifest.teacher_digest[:12]}. Nothing was changed; name the right one "
            f"with --teacher, and --stem and --teacher-output as for build-logits: the store's "
            f"teacher is {manifest.teacher_arch}"
        )


def _recorded_normalisations(
    specs: tuple[str, ...], manifest: StoreManifest, workspace: Workspace
) -> list[NormalisationWords]:
    sources = [find_teacher(spec, workspace) for spec in specs]
    return recorded_normalisations(sources, manifest.mean, manifest.std)


def _open_teachers(
    specs: tuple[str, ...],
    manifest: StoreManifest,
    options: VerifyOptions,
    workspace: Workspace,
    beton: Beton,
) -> Ensemble:
    found = open_ensemble(
        specs,
        given=TeacherOptions(
            archs=as_names(options.arch),
            normalisations=_recorded_normalisations(specs, manifest, workspace),
            stems=as_names(options.stem),
            outputs=as_names(options.teacher_output),
        ),
        mode=manifest.ensemble or BuildLogitsOptions.ensemble,
        workspace=workspace,
        data=beton.manifest,
        image_size=manifest.image_size,
        teacher_size=manifest.teacher_size,
    )
    preprocessing = {
        "center_crop_ratio": found.center_crop_ratio,
        "clean_filter": found.clean_filter,
        "mean": [member.mean for member in found.members],
        "std": [member.std for member in found.members],
    }
    if differ := differences(manifest.to_json(), preprocessing):
        raise TeacherError(
            f"{' + '.join(specs)} uses other preprocessing than the teacher of the store: "
            f"{differ}. Use --teacher as the store was built: {' + '.join(manifest.teachers)}"
        )
    return found


def _rows(group: zarr.Group, manifest: StoreManifest) -> npt.NDArray[np.int64]:
    if manifest.rows == manifest.samples:
        return np.arange(manifest.samples, dtype=np.int64)
    return read_whole(group, "sample_ids")
