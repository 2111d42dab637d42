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
    """Return the beton to read, and the subset; its own beton where `kdcache pack` made one."""
    if options.subset is None and workspace.recall("subset") is None:
        workspace.require_beton()  # where nothing is packed, that comes before selecting
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
    """Return the store; where no rows are needed it still says how views are made, if any."""
    asked = options.teacher or options.store
    needs_rows = options.kd and options.live_teacher is None
    if not needs_rows and asked is None and workspace.recall("store") is None:
        return None
    store = LogitStore.open(workspace.require_store(options.teacher, options.store))
    require_same_data(beton, store)
    return store


def num_samples_before_pruning(store: LogitStore | None, beton: Beton, loss: LossSettings) -> int:
    """Return the number of samples that the share that is kept is a share of."""
    if store:
        return store.manifest.samples
    if loss.alpha.kind == "auto" and beton.manifest.is_subset:
        raise ConfigError(
            f"--alpha is auto, and {beton.path} holds a subset alone, expected to know how many "
            "samples it was selected from. Name a store of all data with --store, or give --alpha "
            "a number"
        )
    return len(beton)
