"""The constants of MDSLR's logit reshaping, from a store's statistics.

References:
    Chen et al. 2025, "Medium-Difficulty Samples Constitute Smoothed Decision Boundary for Knowledge
    Distillation on Pruned Datasets": z / std(z) * k_c, with k_c the mean of std(z) over all samples
    of class c, kept or not, and the deviation with divisor C - 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def reshaping_constants(
    logit_std: npt.NDArray[Any], labels: npt.NDArray[np.int64], num_classes: int
) -> npt.NDArray[np.float64]:
    """Return k, (C,) float64: the mean deviation of the rows of each class.

    Args:
        logit_std: (N,) deviation of each row of logits, `stats["logit_std"]` of a store.
        labels: (N,) in [0, C).
        num_classes: C.

    Returns:
        nan for a class without samples, which no row asks for.
    """
    sums = np.bincount(labels, weights=logit_std, minlength=num_classes)
    counts = np.bincount(labels, minlength=num_classes)
    constants = np.full(num_classes, np.nan)
    np.divide(sums, counts, out=constants, where=counts > 0)
    return constants
