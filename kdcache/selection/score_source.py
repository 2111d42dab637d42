"""Find the scores of a selection: in a store, computed from stored rows, or in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdcache.data.sample_names import sample_names
from kdcache.errors import CacheMismatchError, ConfigError
from kdcache.files import sha256_of
from kdcache.options import SelectOptions, as_names
from kdcache.registry import is_user_code, user_code_digest
from kdcache.scores.registry import SCORES
from kdcache.selection.mdslr import augmented_cross_entropy
from kdcache.selection.provenance import Provenance
from kdcache.selection.score_files import read_scores
from kdcache.selection.stored_scores import compute_scores, load_scores
from kdcache.store.logit_store import LogitStore
from kdcache.workspace import Workspace


def find_scores(
    options: SelectOptions, workspace: Workspace, store: LogitStore
) -> npt.NDArray[Any]:
    """Return the scores to select by, (N,) by sample id.

    Raises:
        ConfigError: if a file or store does not exist, or does not have the scores.
        CacheMismatchError: if the scores belong to other data.
    """
    if options.parity == "mdslr":
        return augmented_cross_entropy(store)
    if options.scores is not None:
        return read_scores(
            Path(options.scores),
            store.manifest.samples,
            data_fingerprint=store.manifest.data_fingerprint,
            sample_names=lambda: sample_names(workspace, store.manifest.data_fingerprint),
        )
    if options.average_with:
        stores = [store, *_others(options, workspace, store)]
        return average(stores, options.score)
    return _score(store, options.score)


def scores_identity(options: SelectOptions, workspace: Workspace, store: LogitStore) -> Provenance:
    """Return what identifies the scores, beside the store and the score's name, as JSON content."""
    if options.parity == "mdslr":
        return {"parity": "mdslr"}
    if options.scores is not None:
        path = Path(options.scores)
        if not path.is_file():
            raise ConfigError(parameter="scores", value=options.scores, rule="a file that exists")
        return {"scores": path.name, "scores_digest": sha256_of(path)}
    if options.average_with:
        others = _others(options, workspace, store)
        digests = [other.manifest.teacher_digest for other in others]
        return {"averaged_with": digests, **_score_identity(store, options.score)}
    return _score_identity(store, options.score)


def average(stores: list[LogitStore], score: str) -> npt.NDArray[np.float32]:
    """Return the mean score over several teachers, (N,), summed in float64 and rounded once.

    Args:
        stores: stores of the same data.
        score: name of a score of all these stores.
    """
    total = _score(stores[0], score).astype(np.float64)
    for store in stores[1:]:
        total += _score(store, score)
    total /= len(stores)
    return total.astype(np.float32)


def _others(options: SelectOptions, workspace: Workspace, store: LogitStore) -> list[LogitStore]:
    names = as_names(options.average_with)
    others = [LogitStore.open(workspace.require_store(name)) for name in names]
    for other in others:
        found, wanted = other.manifest.data_fingerprint, store.manifest.data_fingerprint
        if found != wanted:
            raise CacheMismatchError(
                f"{other.path} holds scores of other data than {store.path}: data_fingerprint is "
                f"{found[:12]}, expected {wanted[:12]}"
            )
    digests = [each.manifest.teacher_digest for each in (store, *others)]
    if len(set(digests)) < len(digests):
        raise ConfigError(
            parameter="average_with",
            value=", ".join(names),
            rule=f"other teachers than that of {store.path}, each once",
        )
    return others


def _score(store: LogitStore, name: str) -> npt.NDArray[Any]:
    """Return a score from the store, from a file beside it, or computed by the user's code."""
    if name in store.scores:
        return store.scores[name]
    if (found := load_scores(store, name)) is not None:
        return found.scores
    if is_user_code(name):
        return compute_scores(store, name).scores
    raise ConfigError(
        parameter="score",
        value=name,
        problem=(
            f"{store.path} holds {', '.join(store.scores)}: it was built before {name} was added"
        ),
        remedy=f"Run: kdcache score {name} --store {store.path}",
    )


def _score_identity(store: LogitStore, name: str) -> Provenance:
    """Return what identifies a score that the store does not hold, as JSON content."""
    if name in store.scores:
        return {}
    if is_user_code(name):
        SCORES.load(name)  # the digest is known after the import
        return {"score_code_digest": user_code_digest(name)}
    found = load_scores(store, name)
    return {} if found is None else {"score_computed_from": found.about["computed_from"]}
