"""Compute the constants of MDSLR's logit reshaping from the statistics of a store.

References:
    Chen et al. 2025, "Medium-Difficulty Samples Constitute Smoothed Decision Boundary for Knowledge
    Distillation on Pruned Datasets": z / std(z) * k_c. Here k_c is the mean of std(z) over all
    samples of class c, kept or not; std has divisor C - 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def reshaping_constants(
    logit_std: npt.NDArray[Any], labels: npt.NDArray[np.int64], num_classes: int
) -> npt.NDArray[np.float64]:
    """Return the mean standard deviation of the logits per class, (C,) float64.

    Args:
        logit_std: (N,) standard deviation per row, `stats["logit_std"]` of a store.
        labels: (N,) in [0, C).
        num_classes: C.

    Returns:
        (C,) float64; NaN for a class without samples, which no row uses.
    """
    sums = np.bincount(labels, weights=logit_std, minlength=num_classes)
    counts = np.bincount(labels, minlength=num_classes)
    constants = np.full(num_classes, np.nan)
    np.divide(sums, counts, out=constants, where=counts > 0)
    return constants
