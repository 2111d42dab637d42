"""A codec that keeps the k largest logits, and statistics of the others (the tail)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace

from kdcache.compiled import compiled
from kdcache.store.codecs.codec import Codec, as_float32, spread
from kdcache.store.codecs.dense import MAX_FLOAT16
from kdcache.store.codecs.kept_classes import kept_classes
from kdcache.store.codecs.largest import below_largest, largest_in_rows
from kdcache.store.codecs.rows import Fields, as_int64, index_type, pack, put_in_rows, unpack
from kdcache.store.codecs.sparse import SparseProbabilities

_MIN_DIVISOR = 1e-12
"""Smallest divisor; it would be 0 if all logits of the tail are equal, or T is far below 1."""


class TopRows(NamedTuple):
    """The fields of a batch of rows. Logits are relative to the row's largest."""

    indices: Any
    """(B, k) int64, the classes with the largest logits, largest first."""
    logits: Any
    """(B, k) float32, in descending order; the first is 0."""
    tail_logsumexp: Any
    """(B, 1) float32, logsumexp over the C - k other classes."""
    tail_mean: Any
    """(B, 1) float32, mean over the other classes."""
    tail_variance: Any
    """(B, 1) float32, variance over the other classes."""

    def tail_logit(self, temperature: float, tail_classes: int) -> Any:
        """Return one logit u for all classes of the tail, (B, 1) float32.

        u is chosen so that n exp(u / T), for n classes, is the tail's weight at temperature T. The
        exact value is u = K(s) / s with s = 1 / T, where K(s) is the log of the mean of exp(s z)
        over the tail, its cumulant generating function. A row stores K(1), K'(0) (the mean) and
        K''(0) (the variance). K is approximated by the rational function with these values,
        s (mean + a s / (1 + b s)). So u is exact at T = 1 and in the limit of large T, and it
        increases with s from the mean, as the exact u does. For T < 1, u is limited to the smallest
        kept logit.
        """
        xp = array_namespace(self.logits)
        s = 1 / temperature
        rise = self.tail_logsumexp - math.log(tail_classes) - self.tail_mean
        rise = xp.maximum(rise, xp.zeros_like(rise))  # negative only by rounding
        half = self.tail_variance / 2
        between = rise * (1 - s) + half * s
        logit = self.tail_mean + rise * half * s / xp.maximum(
            between, xp.full_like(rise, _MIN_DIVISOR)
        )
        return xp.minimum(logit, self.logits[:, -1:])


@dataclass(frozen=True)
class TopK(Codec):
    """Stores the k largest logits as float16, and logsumexp, mean and variance of the tail.

    A row takes k class indices of 1, 2 or 4 bytes and 2 (k - 1) + 12 bytes. The decoded tail has
    about the right probability mass at every temperature (see `TopRows.tail_logit`), but it is
    uniform. So the codec is good only near T = 1, where the tail hardly matters. The error of a
    kept logit's distance d from the row's largest is at most d 2^-11 + 2^-25. Range:
    spread <= 65,504.

    References:
        Shen and Xing 2022, "A Fast Knowledge Distillation Framework for Visual Recognition", has
        the uniform tail at T = 1 ("marginal smoothing").
    """

    k: int
    """Number of logits kept, in [1, C]."""

    name: ClassVar[str] = "topk"
    request_parameters: ClassVar[Mapping[str, tuple[type, int]]] = {"k": (int, 1)}

    @classmethod
    def require_fits(
        cls, parameters: Mapping[str, int | float], *, num_rows: int, num_classes: int
    ) -> None:
        """Check k against the number of classes."""
        del num_rows
        kept_classes(cls.name, parameters, num_classes)

    @classmethod
    def from_request(
        cls, parameters: Mapping[str, int | float], fitted_NC: npt.NDArray[np.float32]
    ) -> Self:
        """Return the codec; by default k = min(10, C)."""
        num_classes = fitted_NC.shape[1]
        return cls(num_classes, kept_classes(cls.name, parameters, num_classes))

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8."""
        return np.dtype(np.uint8)

    @property
    def row_width(self) -> int:
        """Size of the fields in bytes."""
        return self._fields.itemsize

    @property
    def parameters(self) -> dict[str, int | float]:
        """`k`."""
        return {"k": self.k}

    @property
    def _fields(self) -> Fields:
        return np.dtype(
            [
                ("indices", index_type(self.num_classes), (self.k,)),
                ("below", "<f2", (self.k - 1,)),  # the largest is 0 below itself
                ("tail", "<f4", (3,)),
            ]
        )

    def parts(self, rows_BW: Any) -> TopRows:
        """Return the fields of rows."""
        fields = unpack(self._fields, rows_BW)
        xp = array_namespace(rows_BW)
        tail = fields["tail"]
        below_BK = -as_float32(fields["below"])
        return TopRows(
            indices=as_int64(fields["indices"]),
            logits=xp.concat([xp.zeros_like(tail[:, :1]), below_BK], axis=1),
            tail_logsumexp=tail[:, 0:1],
            tail_mean=tail[:, 1:2],
            tail_variance=tail[:, 2:3],
        )

    def _encode(
        self, logits_BC: npt.NDArray[np.float32], _ids: npt.NDArray[np.uint64], _view: np.uint64, /
    ) -> npt.NDArray[np.generic]:
        indices_BK, values_BK = largest_in_rows(logits_BC, self.k)
        return pack(
            self._fields,
            {
                "indices": indices_BK,
                "below": below_largest(values_BK),
                "tail": _tail(logits_BC, indices_BK, values_BK),
            },
        )

    def _decode(self, rows_BW: Any, temperature: float, /) -> Any:
        parts = self.parts(rows_BW)
        tail_classes = self.num_classes - self.k
        tail_B1 = parts.tail_logit(temperature, tail_classes) if tail_classes else parts.tail_mean
        return put_in_rows(tail_B1, self.num_classes, parts.indices, parts.logits)

    def _sparse(self, rows_BW: Any, temperature: float, /) -> SparseProbabilities:
        parts = self.parts(rows_BW)
        xp = array_namespace(rows_BW)
        tail_classes = self.num_classes - self.k
        kept_BK, weights_BK = parts.logits / temperature, xp.exp(parts.logits / temperature)
        tail_B1, tail_weight_B1 = xp.zeros_like(parts.tail_mean), xp.zeros_like(parts.tail_mean)
        if tail_classes:
            tail_B1 = parts.tail_logit(temperature, tail_classes) / temperature
            tail_weight_B1 = xp.exp(tail_B1)
        # The largest logit is 0, so the sum is at least 1.
        sum_B1 = xp.sum(weights_BK, axis=1, keepdims=True) + tail_classes * tail_weight_B1
        mean_B1 = xp.sum(weights_BK * kept_BK, axis=1, keepdims=True)
        mean_B1 = (mean_B1 + tail_classes * tail_weight_B1 * tail_B1) / sum_B1
        rest_B1 = tail_weight_B1 / sum_B1
        return SparseProbabilities(
            indices=parts.indices,
            excess=weights_BK / sum_B1 - rest_B1,
            rest=rest_B1,
            negative_entropy=(mean_B1 - xp.log(sum_B1))[:, 0],
        )

    def _in_range(self, logits_BC: npt.NDArray[np.float64], /) -> npt.NDArray[np.bool_]:
        return spread(logits_BC) <= MAX_FLOAT16


@compiled(nogil=True)
def _tail(
    logits_BC: npt.NDArray[np.float32],
    indices_BK: npt.NDArray[np.int64],
    values_BK: npt.NDArray[np.float32],
) -> npt.NDArray[np.float64]:
    """Return logsumexp, mean and variance of each tail, (B, 3).

    They are relative to the row's largest logit, and 0 if there is no tail.
    """
    tails = np.zeros((len(logits_BC), 3), dtype=np.float64)
    count = logits_BC.shape[1] - indices_BK.shape[1]
    if count == 0:
        return tails
    tail = np.empty(count, dtype=np.float64)
    for b in range(len(logits_BC)):
        smallest_kept, last_kept = values_BK[b, -1], indices_BK[b, -1]
        found = 0
        for c in range(logits_BC.shape[1]):
            value = logits_BC[b, c]
            if value < smallest_kept or (value == smallest_kept and c > last_kept):
                tail[found] = np.float64(value) - np.float64(values_BK[b, 0])
                found += 1
        largest, total, weight, squares = tail.max(), 0.0, 0.0, 0.0
        for logit in tail:
            total += logit
            weight += np.exp(logit - largest)
        mean = total / count
        for logit in tail:
            squares += (logit - mean) ** 2
        tails[b, 0] = largest + np.log(weight)
        tails[b, 1] = mean
        tails[b, 2] = squares / count
    return tails
