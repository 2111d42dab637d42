"""Open what `kdcache train` reads: the beton, the subset and the store."""

from __future__ import annotations

from pathlib import Path

from kdcache.data.beton import Beton, open_beton
from kdcache.data.repack import require_same_samples, subset_beton
from kdcache.errors import ConfigError
from kdcache.loader.distill import require_same_data
from kdcache.options import TrainOptions
from kdcache.selection.subset import Subset
from kdcache.store.logit_store import LogitStore
from kdcache.training.losses.settings import LossSettings
from kdcache.workspace import Workspace


def open_data(
    workspace: Workspace, options: TrainOptions
) -> tuple[Beton, Path | None, Subset | None]:
    """Return the beton, the path of the subset and the subset; prefer the subset's own beton.

    Path and subset are None for all data.
    """
    if options.subset is None and workspace.recall("subset") is None:
        workspace.require_beton()  # if nothing is packed, report that first
    path = workspace.require_subset(options.subset)
    if path is None:
        return open_beton(workspace.require_beton()), None, None
    packed = subset_beton(path)
    beton = open_beton(packed if packed.exists() else workspace.require_beton())
    subset = Subset.load_of(path, beton.manifest.data_fingerprint)
    if beton.manifest.is_subset:
        require_same_samples(beton, path, subset.sample_ids)
    return beton, path, subset


def open_store(workspace: Workspace, options: TrainOptions, beton: Beton) -> LogitStore | None:
    """Return the store, or None. A run without KD still takes its views from a store if it can."""
    asked = options.teacher or options.store
    needs_rows = options.kd and options.live_teacher is None
    if not needs_rows and asked is None and workspace.recall("store") is None:
        return None
    store = LogitStore.open(workspace.require_store(options.teacher, options.store))
    require_same_data(beton, store)
    return store


def num_samples_before_pruning(store: LogitStore | None, beton: Beton, loss: LossSettings) -> int:
    """Return the size of the full training set, of which the subset is a fraction."""
    if store:
        return store.manifest.samples
    if loss.alpha.kind == "auto" and beton.manifest.is_subset:
        raise ConfigError(
            f"--alpha is auto, but {beton.path} holds only a subset, so the size of the full data "
            "is unknown. Name a store of all data with --store, or give --alpha a number",
            parameter="alpha",
            value="auto",
        )
    return len(beton)
