"""`kdcache select`: the scores of a store -> a subset file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdcache.errors import CacheMismatchError
from kdcache.files import differences
from kdcache.options import SelectOptions
from kdcache.progress import logger
from kdcache.selection.policies import select_ids
from kdcache.selection.subset import Subset
from kdcache.store.logit_store import LogitStore
from kdcache.workspace import Workspace


def select(options: SelectOptions) -> dict[str, Any]:
    """Choose samples and write their ids.

    Returns:
        `method`, `keep`, `kept`, `of` and `path`.

    Raises:
        ConfigError: if nothing was built yet, or a score is not finite.
        CacheMismatchError: if the file exists and was made otherwise.
    """
    workspace = Workspace(options.workspace)
    store = LogitStore.open(workspace.require_store(options.teacher))
    manifest = store.manifest
    provenance = {
        "method": options.method,
        "keep": options.keep,
        "score": options.score,
        "balance": options.balance,
        "seed": options.seed,
        "of": manifest.samples,
        "data_fingerprint": manifest.data_fingerprint,
        "teacher": manifest.teacher,
        "teacher_digest": manifest.teacher_digest,
    }
    path = options.out or workspace.subset(subset_name(options))
    logger.info("%s of %s by %s", options.method, store.path, options.score)
    if path.exists() and not options.overwrite:
        subset = _reuse(path, provenance)
    else:
        ids = select_ids(
            store.scores[options.score],
            store.labels,
            method=options.method,
            keep=options.keep,
            balance=options.balance,
            seed=options.seed,
            num_classes=manifest.classes,
        )
        subset = Subset(ids, provenance)
        subset.save(path)
    _report(subset, store.labels, manifest.class_names)
    workspace.remember("subset", path)
    return {
        "method": options.method,
        "keep": options.keep,
        "kept": len(subset),
        "of": manifest.samples,
        "path": str(path.resolve()),
    }


def subset_name(options: SelectOptions) -> str:
    """Return METHOD-KEEP[-SCORE][-BALANCE][-sSEED], defaults left out."""
    parts = [options.method, f"{options.keep:g}"]
    defaults = SelectOptions()
    if options.score != defaults.score:
        parts.append(options.score)
    if options.balance != defaults.balance:
        parts.append(options.balance)
    if options.seed != defaults.seed:
        parts.append(f"s{options.seed}")
    return "-".join(parts)


def _reuse(path: Path, provenance: dict[str, Any]) -> Subset:
    subset = Subset.load(path)
    if differ := differences(subset.provenance, provenance):
        raise CacheMismatchError(
            f"{path} was made otherwise: {differ}. "
            "Use --overwrite to replace it, or --out for another file"
        )
    logger.info("up to date: %s", path)
    return subset


def _report(subset: Subset, labels: npt.NDArray[np.int64], class_names: list[str]) -> None:
    kept = np.bincount(labels[subset.sample_ids], minlength=len(class_names))
    sizes = np.bincount(labels, minlength=len(class_names))
    shown = 20
    for name, count, size in list(zip(class_names, kept, sizes, strict=True))[:shown]:
        logger.info("  %-20s %7s of %s", name, f"{count:,}", f"{size:,}")
    if len(class_names) > shown:
        logger.info(
            "  and %d more classes; over all, %s to %s are kept of each",
            len(class_names) - shown,
            f"{kept.min():,}",
            f"{kept.max():,}",
        )
    gone = [name for name, count in zip(class_names, kept, strict=True) if count == 0]
    if gone:
        logger.warning("%d classes keep no sample, the first is %s", len(gone), gone[0])
