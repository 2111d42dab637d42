"""Open the store of a build: continue it or create it, and refuse one that does not fit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdcache.data.beton import Beton
from kdcache.errors import CacheCorruptError, CacheIncompleteError, CacheMismatchError
from kdcache.options import BuildLogitsOptions
from kdcache.reader.probe import probe_pixels
from kdcache.store.build.plan import Part
from kdcache.store.build.preflight import Preflight
from kdcache.store.format.layout import FEATURES, has_array, is_complete
from kdcache.store.format.location import Location, exists, parse_location
from kdcache.store.format.shards import read_whole
from kdcache.store.logit_store import LogitStore
from kdcache.store.manifest import (
    CONDITIONS,
    IDENTITY,
    StoreManifest,
    build_conditions,
    require_equal,
)
from kdcache.store.upkeep.reuse import copy_clean_view, find_clean_view
from kdcache.store.writer import StoreWriter
from kdcache.workspace import Workspace


def store_location(
    options: BuildLogitsOptions, workspace: Workspace, teacher_name: str
) -> Location:
    """Return the location of the store; its name includes the subset, if there is one."""
    if options.store is not None:
        return parse_location(options.store)
    subset = workspace.require_subset(options.subset or "full")
    name = teacher_name if subset is None else f"{teacher_name}-{subset.stem}"
    return workspace.store(name).resolve()


def store_lock(location: Location, workspace: Workspace) -> Path:
    """Return the lock file of a store: next to a folder, or in the workspace for a URL."""
    if isinstance(location, Path):
        return location.with_name(f".{location.name}.lock")
    digest = hashlib.sha256(location.encode()).hexdigest()[:16]
    return workspace.store(digest).with_name(f".{digest}.lock")


def open_existing(
    options: BuildLogitsOptions, location: Location, part: Part
) -> StoreWriter | None:
    """Open the store that the build continues; return None if it creates a new one."""
    if options.overwrite or not exists(location):
        return None
    return StoreWriter(location, exclusive=part.is_whole)


def open_writer(
    options: BuildLogitsOptions,
    location: Location,
    part: Part,
    existing: StoreWriter | None,
    wanted: StoreManifest,
    beton: Beton,
    rows: npt.NDArray[np.int64],
    workspace: Workspace,
    preflight: Callable[[], Preflight],
) -> StoreWriter:
    """Create a store or continue one. All its arrays exist afterwards; shards may be missing.

    Args:
        options: options of the command.
        location: location of the store.
        part: part of this process.
        existing: the store to continue, if it existed before the lock was taken.
        wanted: manifest that the store must have.
        beton: the training images.
        rows: (M,) sample ids of the augmented views.
        workspace: its stores are searched for a clean view to reuse.
        preflight: runs the teacher on a batch; it is called before a store is created or replaced.

    Raises:
        CacheMismatchError: if the existing store was built from other inputs, under other
            conditions, or from other pixels.
        TeacherError: if the teacher's logits cannot be stored.
    """
    # Another part may have created the store in the meantime.
    writer = existing or open_existing(options, location, part)
    if writer is not None:
        require_equal(
            writer.manifest,
            wanted,
            IDENTITY,
            path=str(location),
            remedy="Use --overwrite to build it again, or another --workspace",
        )
        if _is_finished(options, writer):
            return writer
    source = None
    if wanted.rows < wanted.samples and (writer is None or not is_complete(writer.group, 0)):
        source = find_clean_view(workspace.store("any").parent, wanted)
    width = None
    if writer is None or options.features:
        width = preflight().feature_width
    probe = probe_pixels(beton, wanted.views, num_workers=options.num_workers)
    if writer is None:
        shard_rows = source.manifest.shard_rows if source else wanted.shard_rows
        writer = StoreWriter.create(
            location,
            replace(wanted, shard_rows=shard_rows),
            labels=beton.labels,
            sample_ids=rows,
            pixel_probe=probe,
        )
    else:
        writer.write_initial_arrays(labels=beton.labels, sample_ids=rows, pixel_probe=probe)
        _require_same_pixels(writer, probe)
        if options.views > writer.num_views or (
            options.features and not has_array(writer.group, FEATURES)
        ):
            # Check before an array is added, so that a refused store is not changed.
            conditions_to_record(writer, wanted, allow_mixed=options.allow_mixed)
    if source and source.manifest.shard_rows == writer.manifest.shard_rows:
        copy_clean_view(source, writer)
    if width is not None:
        writer.add_features(width)
    return writer


def _is_finished(options: BuildLogitsOptions, writer: StoreWriter) -> bool:
    """Return whether a store has all requested views and features, and no missing shard."""
    try:
        store = LogitStore.from_group(writer.path, writer.group, writer.manifest)
    except (CacheIncompleteError, CacheCorruptError):
        return False
    return store.num_views >= options.views and (
        not options.features or has_array(store.group, FEATURES)
    )


def _require_same_pixels(writer: StoreWriter, probe: npt.NDArray[np.uint8]) -> None:
    """Check that this machine decodes the same pixels as the one that began the store."""
    stored = read_whole(writer.group, "pixel_probe")
    if len(stored) and not np.array_equal(stored, probe):
        raise CacheMismatchError(
            f"this machine decodes other pixels than those of the rows of {writer.path}: its "
            "build of libjpeg-turbo or OpenCV differs. Continue on the machine that began the "
            "store, or use --overwrite to build it again"
        )


def conditions_to_record(
    writer: StoreWriter, wanted: StoreManifest, *, allow_mixed: bool
) -> dict[str, Any] | None:
    """Return the build conditions to record with each shard; None if the manifest's apply."""
    # The shard size of the store stays; a batch never crosses a shard.
    here = replace(wanted, shard_rows=writer.manifest.shard_rows)
    if build_conditions(here) == build_conditions(writer.manifest):
        return None
    if not allow_mixed:
        require_equal(
            writer.manifest,
            here,
            CONDITIONS,
            path=str(writer.path),
            remedy="The new rows would differ in the last bits from those of one build. Continue "
            "with --allow-mixed, which is recorded, or use --overwrite to build the store again",
        )
    return build_conditions(here)
