"""`kdcache score`: compute a score that a store lacks from its stored rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdcache.options import ScoreOptions
from kdcache.progress import logger
from kdcache.results import Result
from kdcache.selection.stored_scores import compute_scores, load_scores, save_scores, score_file
from kdcache.store.format.location import Location
from kdcache.store.logit_store import LogitStore
from kdcache.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class ScoreResult(Result):
    """A score, computed from a store's clean view."""

    score: str
    computed_from: str
    """The teacher's pass, or the stored rows."""
    samples: int
    mean: float
    path: Path | str
    """The score file, or the store if it was built with this score."""


def score(options: ScoreOptions) -> ScoreResult:
    """Compute a score from the stored clean view and write it beside the store.

    The clean view is stored as float16 (`dense`) unless the store's codec is `float32`, so the
    numbers differ from those of a build in their last digits. The file records that.

    Raises:
        ConfigError: if there is no such score, or it returns anything but one finite number per
            sample.
        CacheMismatchError: if a file is there that was computed from something else.
    """
    workspace = Workspace(Path(options.workspace))
    store = LogitStore.open(workspace.require_store(options.teacher, options.store))
    if options.name in store.scores:
        logger.info("up to date: %s holds %s, from its build", store.path, options.name)
        return _result(options.name, "the teacher's pass", store.scores[options.name], store.path)
    path = score_file(store, options.name)
    found = None if options.overwrite else load_scores(store, options.name)
    if found is None:
        found = compute_scores(store, options.name)
        save_scores(path, found)
        logger.info("%s from %s -> %s", options.name, found.about["computed_from"], path)
    else:
        logger.info("up to date: %s", path)
    return _result(options.name, found.about["computed_from"], found.scores, path)


def _result(
    name: str, computed_from: str, scores: npt.NDArray[np.float32], path: Location
) -> ScoreResult:
    return ScoreResult(
        score=name,
        computed_from=computed_from,
        samples=len(scores),
        mean=float(scores.mean(dtype=float)),
        path=path.resolve() if isinstance(path, Path) else path,
    )
