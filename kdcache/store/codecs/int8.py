"""A codec that stores every logit in one byte, with a step size per row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from kdcache.store.codecs.codec import Codec, as_float32, spread
from kdcache.store.codecs.rows import Fields, pack, unpack

LEVELS = 255
"""Number of steps between the smallest and the largest logit of a row."""

MAX_FLOAT32 = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Int8(Codec):
    """Stores each logit as a number of steps below the row's largest, in C + 4 bytes.

    The error of a logit's distance from the largest is at most half a step, that is spread / 510,
    plus 2^-23 of the distance for float32 arithmetic. Range: spread <= 3.4e38.
    """

    name: ClassVar[str] = "int8"

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8."""
        return np.dtype(np.uint8)

    @property
    def row_width(self) -> int:
        """C + 4."""
        return self._fields.itemsize

    @property
    def _fields(self) -> Fields:
        return np.dtype([("step", "<f4", (1,)), ("steps_below", "<u1", (self.num_classes,))])

    def _encode(
        self, logits_BC: npt.NDArray[np.float32], _ids: npt.NDArray[np.uint64], _view: np.uint64, /
    ) -> npt.NDArray[np.generic]:
        exact_BC = logits_BC.astype(np.float64)
        below_BC = exact_BC.max(axis=1, keepdims=True) - exact_BC
        step_B1 = (below_BC.max(axis=1, keepdims=True) / LEVELS).astype(np.float32)
        # If all logits are equal (or differ by denormals), the step is 0, and so are all distances.
        steps_BC = np.rint(below_BC / np.where(step_B1 > 0, step_B1, np.inf))
        return pack(self._fields, {"step": step_B1, "steps_below": np.minimum(steps_BC, LEVELS)})

    def _decode(self, rows_BW: Any, _temperature: float, /) -> Any:
        fields = unpack(self._fields, rows_BW)
        return -fields["step"] * as_float32(fields["steps_below"])

    def _in_range(self, logits_BC: npt.NDArray[np.float64], /) -> npt.NDArray[np.bool_]:
        return spread(logits_BC) <= MAX_FLOAT32
