"""Define how far two runs of a teacher on the same image may differ.

Another batch size, device or library splits sums differently, so the last bits differ. Rows are
compared after centring, relative to their range (largest minus smallest logit): a student sees a
row through its softmax, which ignores the mean of the row.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kdcache.options import Precision

TOLERANCES: dict[Precision, float] = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 2e-2, "bf16": 1e-1}
"""Largest difference of a centred logit between two runs of a teacher at one precision, as a
fraction of the row's range. Each allows a few hundred units in the last place, because sums are
split differently in every layer. A CPU with avx512_bf16 stays far below: 3e-7 at fp32 and at bf16,
for ResNet-8 and ResNet-20 with batches of 64, 32, 3 and 1 (`tests/store/test_live_teacher.py`)."""


def relative_differences(
    found_BC: npt.NDArray[np.floating], expected_BC: npt.NDArray[np.floating]
) -> npt.NDArray[np.float64]:
    """Return each row's largest difference of centred logits, (B,), as a fraction of its range.

    Args:
        found_BC: (B, C) finite logits.
        expected_BC: (B, C) finite logits that give the range. If the range is 0, any difference
            is infinite.
    """
    found, expected = _centred(found_BC), _centred(expected_BC)
    gap_B = np.abs(found - expected).max(axis=1)
    range_B = expected.max(axis=1) - expected.min(axis=1)
    nothing_B = np.where(gap_B > 0, np.inf, 0.0)
    return np.divide(gap_B, range_B, out=nothing_B, where=range_B > 0)


def _centred(logits_BC: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    wide = logits_BC.astype(np.float64)
    return np.asarray(wide - wide.mean(axis=1, keepdims=True))
