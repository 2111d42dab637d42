"""Class-adaptive density: classes that the teacher gets wrong keep more, at random within each.

References:
    Vysogorets, Ahuja, Kempe 2025, "DRoP: Distributionally Robust Data Pruning" (MetriQ): a density
    proportional to 1 - recall. There the recall of validation images, here that of the clean
    training images, which the store holds; a teacher that has learned them by heart tells little.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def error_densities(
    correct: npt.NDArray[np.bool_], labels: npt.NDArray[np.int64], num_classes: int
) -> list[tuple[int, int]]:
    """Return 1 - recall of each class, as (errors, samples); (0, 1) for a class without samples.

    Args:
        correct: (N,) whether the teacher's largest logit is the label's.
        labels: (N,) in [0, C).
        num_classes: C.
    """
    sizes = np.bincount(labels, minlength=num_classes).tolist()
    errors = np.bincount(labels[~correct.astype(bool)], minlength=num_classes).tolist()
    return [(wrong, max(size, 1)) for wrong, size in zip(errors, sizes, strict=True)]
