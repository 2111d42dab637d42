"""Class-adaptive selection: classes with a lower recall keep more samples, drawn at random.

References:
    Vysogorets, Ahuja, Kempe 2025, "DRoP: Distributionally Robust Data Pruning" (MetriQ): a density
    proportional to 1 - recall. The paper uses the recall on validation images, kdcache that on the
    clean training images, which a store has. If the teacher fits them perfectly, every recall is 1.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def error_densities(
    correct: npt.NDArray[np.bool_], labels: npt.NDArray[np.int64], num_classes: int
) -> list[tuple[int, int]]:
    """Return 1 - recall of each class as a fraction (errors, samples); (0, 1) for an empty class.

    Args:
        correct: (N,) True if the teacher's largest logit is that of the label.
        labels: (N,) in [0, C).
        num_classes: number of classes C.
    """
    sizes = np.bincount(labels, minlength=num_classes).tolist()
    errors = np.bincount(labels[~correct.astype(bool)], minlength=num_classes).tolist()
    return [(wrong, max(size, 1)) for wrong, size in zip(errors, sizes, strict=True)]
