"""The k largest logits of each row."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kdcache.compiled import compiled


@compiled(nogil=True)
def largest_in_rows(
    logits_BC: npt.NDArray[np.float32], k: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the places and values of each row's k largest, largest first.

    Of equal logits the smaller class comes first, as in a stable sort of the whole row.

    Args:
        logits_BC: (B, C) finite.
        k: in [1, C].
    """
    indices = np.empty((len(logits_BC), k), dtype=np.int64)
    values = np.empty((len(logits_BC), k), dtype=np.float32)
    for b in range(len(logits_BC)):
        held = 0
        for c in range(logits_BC.shape[1]):
            value = logits_BC[b, c]
            if held == k and not value > values[b, k - 1]:
                continue
            place = held if held < k else k - 1
            while place > 0 and value > values[b, place - 1]:
                values[b, place] = values[b, place - 1]
                indices[b, place] = indices[b, place - 1]
                place -= 1
            values[b, place] = value
            indices[b, place] = c
            held = min(held + 1, k)
    return indices, values


def below_largest(values_BK: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return how far each but the first of a row's sorted values is below the first, (B, k - 1)."""
    exact_BK = values_BK.astype(np.float64)  # so that the type they are stored in rounds once
    return exact_BK[:, :1] - exact_BK[:, 1:]
