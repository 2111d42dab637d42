"""Scores that are computed from the stored clean view, and the files that hold them.

A finished store never changes. So a score that the store lacks is written beside it: for
`NAME.zarr`, to `NAME.scores/SCORE.npz`, with the arrays `scores` (N,) float32 and `about`, a JSON
string that records what the score was computed from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kdcache.errors import CacheCorruptError, CacheMismatchError, ConfigError
from kdcache.files import make_directory
from kdcache.identity import differences
from kdcache.progress import progress_bar
from kdcache.registry import is_user_code, user_code_digest
from kdcache.scores.registry import SCORES
from kdcache.seals import parse_sealed_npz, write_sealed_npz
from kdcache.selection.pruning import require_finite
from kdcache.store.logit_store import LogitStore

_MAX_BLOCK_LOGITS = 1 << 24
"""Maximum number of logits in a block (64 MiB); a block has at least one row."""


class StoredScores(NamedTuple):
    """A score computed from stored rows, and its origin."""

    scores: npt.NDArray[np.float32]
    """(N,) by sample id, finite; higher is harder."""
    about: dict[str, Any]
    """JSON content that records the origin: `score`, `computed_from`, the store's
    `manifest_digest`, `data_fingerprint` and `teacher_digest`, and for a user's score its
    `code_digest`."""


def score_file(store: LogitStore, name: str) -> Path:
    """Return the path of a score file beside its store.

    Raises:
        ConfigError: if the store is on an object store.
    """
    if not isinstance(store.path, Path):
        raise ConfigError(
            f"{store.path} is on an object store, expected a store in a local folder, because the "
            "score file is written beside it. Use select --scores FILE instead"
        )
    folder = store.path.with_name(f"{store.path.stem}.scores")
    return folder / f"{name.replace(':', '-')}.npz"


def compute_scores(store: LogitStore, name: str) -> StoredScores:
    """Compute a score from the stored rows of the clean view.

    Args:
        store: a finished store.
        name: a registered score, or `module:name`.

    Raises:
        ConfigError: if the score does not exist, or does not return one finite number per sample.
    """
    import torch

    function = SCORES.load(name)
    num_samples = store.manifest.samples
    block_rows = max(1, _MAX_BLOCK_LOGITS // store.manifest.classes)
    scores = np.empty(num_samples, dtype=np.float32)
    with (
        torch.inference_mode(),
        progress_bar(total=num_samples, unit="image", description=f"score {name}") as bar,
    ):
        for first in range(0, num_samples, block_rows):
            ids = np.arange(first, min(first + block_rows, num_samples))
            logits = torch.from_numpy(store.logits(ids, 0))
            found = function(logits, torch.from_numpy(store.labels[ids]))
            if not isinstance(found, torch.Tensor) or found.shape != (len(ids),):
                shape = getattr(found, "shape", None)
                shown = type(found).__name__ if shape is None else f"shape {tuple(shape)}"
                raise ConfigError(
                    f"score {name} returned {shown} for {len(ids):,} samples, expected a tensor "
                    f"of shape ({len(ids)},): one number per sample, higher for a harder one"
                )
            scores[ids] = found.numpy()
            bar.update(len(ids))
    require_finite(scores)
    return StoredScores(scores, _about(store, name))


def save_scores(path: Path, found: StoredScores) -> None:
    """Write a score file atomically."""
    make_directory(path.parent)
    write_sealed_npz(path, {"scores": found.scores, "about": json.dumps(found.about)})


def load_scores(store: LogitStore, name: str) -> StoredScores | None:
    """Read the score file beside the store; None if it does not exist.

    Raises:
        CacheCorruptError: if the file is damaged.
        CacheMismatchError: if the score was computed from another store, or by another version of
            the user's code.
    """
    if not isinstance(store.path, Path):
        return None
    path = score_file(store, name)
    if not path.exists():
        return None
    remedy = f"Run: kdcache score {name} --store {store.path} --overwrite"
    arrays = parse_sealed_npz(path.read_bytes(), path, remedy=remedy)
    try:
        scores, about = arrays["scores"], dict(json.loads(str(arrays["about"])))
    except (KeyError, TypeError, ValueError) as error:
        raise CacheCorruptError(f"{path} is not a score file ({error}). {remedy}") from error
    if is_user_code(name):
        SCORES.load(name)  # imports the current code, whose digest is compared
    if differ := differences(about, _about(store, name)):
        raise CacheMismatchError(f"{path} was computed from other inputs: {differ}. {remedy}")
    if scores.shape != (store.manifest.samples,) or scores.dtype != np.float32:
        raise CacheCorruptError(
            f"{path} holds {scores.dtype} of shape {scores.shape}, expected float32 of shape "
            f"({store.manifest.samples},). {remedy}"
        )
    return StoredScores(scores, about)


def _about(store: LogitStore, name: str) -> dict[str, Any]:
    manifest = store.manifest
    return {
        "score": name,
        "computed_from": f"stored rows of view 0 ({store.codec_of(0)})",
        "manifest_digest": manifest.digest(),
        "data_fingerprint": manifest.data_fingerprint,
        "teacher_digest": manifest.teacher_digest,
        "code_digest": user_code_digest(name) if is_user_code(name) else None,
    }
