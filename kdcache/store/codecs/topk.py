"""The k largest logits, and of all others what they sum to."""

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
from kdcache.store.codecs.dense import LARGEST_FLOAT16
from kdcache.store.codecs.kept_classes import kept_classes
from kdcache.store.codecs.largest import below_largest, largest_in_rows
from kdcache.store.codecs.rows import Fields, classes, index_type, pack, put_in_rows, unpack
from kdcache.store.codecs.sparse import SparseProbabilities

_LEAST = 1e-12
"""Instead of a divisor of 0: the tail has one value, or T is far below 1."""


class TopRows(NamedTuple):
    """A batch of rows, not yet spread over all classes. Logits count from the row's largest."""

    indices: Any
    """(B, k) int64, the classes with the largest logits, largest first."""
    logits: Any
    """(B, k) float32, from 0 downwards."""
    tail_logsumexp: Any
    """(B, 1) float32, over the C - k other classes."""
    tail_mean: Any
    """(B, 1) float32."""
    tail_variance: Any
    """(B, 1) float32."""

    def tail_logit(self, temperature: float, tail_classes: int) -> Any:
        """Return the one logit that stands for each class of the tail, (B, 1) float32.

        At temperature T a tail of n classes weighs n exp(u / T) with u = T K(1 / T), where K(s) is
        the logarithm of the mean of exp(s z) over the tail, its cumulant generating function. A row
        tells K(1), K'(0) = mean and K''(0) = variance. u is what K(s) / s is for the simplest
        fraction through them, s (mean + a s / (1 + b s)): exact at T = 1 and as T grows, and, as K
        does, rising from the mean with s. Below T = 1 no class of the tail passes a kept one.
        """
        xp = array_namespace(self.logits)
        s = 1 / temperature
        rise = self.tail_logsumexp - math.log(tail_classes) - self.tail_mean
        rise = xp.maximum(rise, xp.zeros_like(rise))  # rounding alone puts it below
        half = self.tail_variance / 2
        between = rise * (1 - s) + half * s
        logit = self.tail_mean + rise * half * s / xp.maximum(between, xp.full_like(rise, _LEAST))
        return xp.minimum(logit, self.logits[:, -1:])


@dataclass(frozen=True)
class TopK(Codec):
    """The k largest in float16, and logsumexp, mean and variance of the tail.

    k indices of 1, 2 or 4 bytes, 2 (k - 1) + 12 bytes. The tail gets its right share of the
    probability at any temperature (see `TopRows.tail_logit`) but a uniform shape: good near T = 1
    alone, where the tail hardly counts. Error of a kept logit's distance d from the row's largest:
    at most d 2^-11 + 2^-25. Range: spread <= 65,504.

    References:
        Shen and Xing 2022, "A Fast Knowledge Distillation Framework for Visual Recognition", has
        the uniform tail at T = 1 ("marginal smoothing").
    """

    k: int
    """Logits kept, in [1, C]."""

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
        """Return the codec with k, 10 or C when it is left out."""
        num_classes = fitted_NC.shape[1]
        return cls(num_classes, kept_classes(cls.name, parameters, num_classes))

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8."""
        return np.dtype(np.uint8)

    @property
    def row_width(self) -> int:
        """Bytes of the fields."""
        return self._fields.itemsize

    @property
    def parameters(self) -> dict[str, int | float]:
        """How many logits are kept."""
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
        """Return what rows hold, without spreading it over all classes."""
        fields = unpack(self._fields, rows_BW)
        xp = array_namespace(rows_BW)
        tail = fields["tail"]
        below_BK = -as_float32(fields["below"])
        return TopRows(
            indices=classes(fields["indices"]),
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
        filling = parts.tail_logit(temperature, tail_classes) if tail_classes else parts.tail_mean
        return put_in_rows(filling, self.num_classes, parts.indices, parts.logits)

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
        return spread(logits_BC) <= LARGEST_FLOAT16


@compiled(nogil=True)
def _tail(
    logits_BC: npt.NDArray[np.float32],
    indices_BK: npt.NDArray[np.int64],
    values_BK: npt.NDArray[np.float32],
) -> npt.NDArray[np.float64]:
    """Return logsumexp, mean and variance of what was not kept, from the row's largest; or 0."""
    tails = np.zeros((len(logits_BC), 3), dtype=np.float64)
    count = logits_BC.shape[1] - indices_BK.shape[1]
    if count == 0:
        return tails
    tail = np.empty(count, dtype=np.float64)
    for b in range(len(logits_BC)):
        smallest_kept, last_kept = values_BK[b, -1], indices_BK[b, -1]
        held = 0
        for c in range(logits_BC.shape[1]):
            value = logits_BC[b, c]
            if value < smallest_kept or (value == smallest_kept and c > last_kept):
                tail[held] = np.float64(value) - np.float64(values_BK[b, 0])
                held += 1
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
