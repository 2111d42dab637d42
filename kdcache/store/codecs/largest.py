"""Find the k largest logits of each row."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kdcache.compiled import compiled


@compiled(nogil=True)
def largest_in_rows(
    logits_BC: npt.NDArray[np.float32], k: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return class indices and values of each row's k largest logits, (B, k), largest first.

    Equal logits are in the order of their classes, as in a stable sort of the row.

    Args:
        logits_BC: (B, C) finite.
        k: in [1, C].
    """
    indices = np.empty((len(logits_BC), k), dtype=np.int64)
    values = np.empty((len(logits_BC), k), dtype=np.float32)
    for b in range(len(logits_BC)):
        count = 0
        for c in range(logits_BC.shape[1]):
            value = logits_BC[b, c]
            if count == k and not value > values[b, k - 1]:
                continue
            slot = count if count < k else k - 1
            while slot > 0 and value > values[b, slot - 1]:
                values[b, slot] = values[b, slot - 1]
                indices[b, slot] = indices[b, slot - 1]
                slot -= 1
            values[b, slot] = value
            indices[b, slot] = c
            count = min(count + 1, k)
    return indices, values


def below_largest(values_BK: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the distance of each sorted value but the first from the first, (B, k - 1)."""
    exact_BK = values_BK.astype(np.float64)  # float64, so that only the stored type rounds
    return exact_BK[:, :1] - exact_BK[:, 1:]
