"""Codecs that store every logit: as float16 after centring, or as float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from kdcache.store.codecs.codec import Codec, as_float32

MAX_FLOAT16 = 65_504.0


@dataclass(frozen=True)
class Dense(Codec):
    """Stores centred logits (minus the row's mean) as float16, in 2 C bytes.

    The error of a centred logit z is at most |z| 2^-11 + 2^-25. Range: |z| <= 65,504.
    """

    name: ClassVar[str] = "dense"

    @property
    def dtype(self) -> np.dtype[Any]:
        """float16."""
        return np.dtype("<f2")

    @property
    def row_width(self) -> int:
        """C."""
        return self.num_classes

    def _encode(
        self, logits_BC: npt.NDArray[np.float32], _ids: npt.NDArray[np.uint64], _view: np.uint64, /
    ) -> npt.NDArray[np.generic]:
        return (logits_BC - _mean(logits_BC)).astype(self.dtype)

    def _decode(self, rows_BW: Any, _temperature: float, /) -> Any:
        return as_float32(rows_BW)

    def _in_range(self, logits_BC: npt.NDArray[np.float64], /) -> npt.NDArray[np.bool_]:
        return (np.abs(logits_BC - _mean(logits_BC)) <= MAX_FLOAT16).all(axis=1)


@dataclass(frozen=True)
class Float32(Codec):
    """Stores logits unchanged, in 4 C bytes, for tests and comparisons. Range: finite logits."""

    name: ClassVar[str] = "float32"
    is_exact: ClassVar[bool] = True

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32."""
        return np.dtype("<f4")

    @property
    def row_width(self) -> int:
        """C."""
        return self.num_classes

    def _encode(
        self, logits_BC: npt.NDArray[np.float32], _ids: npt.NDArray[np.uint64], _view: np.uint64, /
    ) -> npt.NDArray[np.generic]:
        return logits_BC

    def _decode(self, rows_BW: Any, _temperature: float, /) -> Any:
        return rows_BW

    def _in_range(self, logits_BC: npt.NDArray[np.float64], /) -> npt.NDArray[np.bool_]:
        return np.ones(len(logits_BC), dtype=np.bool_)


def _mean(logits_BC: npt.NDArray[Any]) -> npt.NDArray[Any]:
    with np.errstate(over="ignore"):
        means_B1 = np.asarray(logits_BC.mean(axis=1, keepdims=True))
    # The float32 sum of a few very large logits overflows.
    if not np.isfinite(means_B1).all():
        exact_B1 = logits_BC.mean(axis=1, keepdims=True, dtype=np.float64)
        means_B1 = np.where(np.isfinite(means_B1), means_B1, exact_B1.astype(means_B1.dtype))
    return means_B1
