"""`--parity mdslr`: MDSLR's selection as in its published code.

It differs from `medium` on the clean view in two points. The score is the cross-entropy of one
augmented view (here view 1 of the store), so it depends on the random draw of that view. Every
class keeps the same number, computed from the mean class size, or all its samples if it has fewer;
so the total may differ from `--keep`. The window is that of `kdcache.selection.windows.medium`. The
constants of MDSLR's logit reshaping are in `kdcache.store.reshaping`.

References:
    Chen et al. 2025, "Medium-Difficulty Samples Constitute Smoothed Decision Boundary for Knowledge
    Distillation on Pruned Datasets"; selected_samples/cifar100/medium/generate_index.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kdcache.errors import CacheMismatchError, ConfigError
from kdcache.store.logit_store import LogitStore

VIEW = 1
"""The augmented view that is scored."""

_BLOCK_ROWS = 1 << 14


def mdslr_quotas(class_sizes: Sequence[int], keep: float) -> list[int]:
    """Return int(N / C * percent / 100) for each class, or the class size if that is smaller.

    Raises:
        ConfigError: if the number is 0.
    """
    percent = round(100 * keep, 9)
    # The same float operations in the same order as in the published code: the last bit can
    # change the result of int().
    number = int(sum(class_sizes) / len(class_sizes) * percent / 100)
    if not number:
        raise ConfigError(
            parameter="keep",
            value=f"{keep:g}",
            problem=(
                f"it keeps int({sum(class_sizes) / len(class_sizes):g} * {keep:g}) = 0 "
                "samples of each class, expected at least 1 with --parity mdslr"
            ),
        )
    return [min(number, size) for size in class_sizes]


def augmented_cross_entropy(store: LogitStore) -> npt.NDArray[np.float32]:
    """Return the cross-entropy of view 1 of every sample, (N,) in nats, from the stored rows.

    Raises:
        CacheMismatchError: if the store has no augmented view of all samples.
    """
    if store.num_views < VIEW or len(store.sample_ids) < store.manifest.samples:
        raise CacheMismatchError(
            f"{store.path} holds {store.num_views} augmented views of {len(store.sample_ids):,} "
            f"samples, expected at least one view of all {store.manifest.samples:,} samples: "
            "--parity mdslr scores an augmented view. Run kdcache build-logits with --views 1 or "
            "more"
        )
    scores = np.empty(store.manifest.samples, dtype=np.float32)
    for first in range(0, len(scores), _BLOCK_ROWS):
        ids = np.arange(first, min(first + _BLOCK_ROWS, len(scores)))
        logits_BC = store.logits(ids, VIEW).astype(np.float64)
        logits_BC -= logits_BC.max(axis=1, keepdims=True)
        label_logits_B = logits_BC[np.arange(len(ids)), store.labels[ids]]
        scores[ids] = np.log(np.exp(logits_BC).sum(axis=1)) - label_logits_B
    return scores
