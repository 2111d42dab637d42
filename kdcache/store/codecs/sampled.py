"""A codec that stores draws from the teacher's probabilities at one temperature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace, device, is_torch_array

from kdcache.compiled import compiled
from kdcache.data.philox import philox, uniform
from kdcache.store.codecs.codec import Codec, as_float32
from kdcache.store.codecs.rows import as_int64, index_type
from kdcache.store.codecs.sparse import SparseProbabilities

DEFAULT_DRAWS = 50
"""Default number of draws."""

LOG_UNSEEN = -80.0
"""Decoded log-probability of a class that was not drawn: practically 0, but finite."""

_STREAM_DRAWS = np.uint64(0x6472617773)  # "draws"


@dataclass(frozen=True)
class Sampled(Codec):
    """Stores n classes drawn from the teacher's probabilities, in 1, 2 or 4 bytes per draw.

    The frequencies of the draws are unbiased estimates of the probabilities. So the gradient is
    unbiased over samples, views and seeds, unlike that of a truncated tail.

    kdcache uses systematic sampling instead of the paper's independent draws: the points
    (i + u) / n of the cumulative distribution, with one uniform u per (seed, view, view key). It
    has the same mean and a smaller variance, and every frequency is within 1 / n of its
    probability. Range: all finite logits.

    References:
        Anshumann et al. 2025, "Sparse Logit Sampling" (RS-KD). Systematic sampling: Cochran 1977,
        "Sampling Techniques", chapter 8.
    """

    draws: int
    """Number of draws n, at least 1."""
    temperature: float
    """Temperature of the draws, above 0; the rows can be used at no other."""
    seed: int
    """Seed of the draws."""

    name: ClassVar[str] = "sampled"
    request_parameters: ClassVar[Mapping[str, tuple[type, int]]] = {
        "draws": (int, 1),
        "temperature": (float, 0),
        "seed": (int, 0),
    }

    @classmethod
    def from_request(
        cls, parameters: Mapping[str, int | float], fitted_NC: npt.NDArray[np.float32]
    ) -> Self:
        """Return the codec; by default 50 draws at temperature 1 with seed 0."""
        return cls(
            fitted_NC.shape[1],
            draws=int(parameters.get("draws", DEFAULT_DRAWS)),
            temperature=float(parameters.get("temperature", 1)),
            seed=int(parameters.get("seed", 0)),
        )

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest unsigned integer type that can hold a class index."""
        return np.dtype(index_type(self.num_classes))

    @property
    def row_width(self) -> int:
        """The number of draws."""
        return self.draws

    @property
    def parameters(self) -> dict[str, int | float]:
        """`draws`, `temperature` and `seed`."""
        return {"draws": self.draws, "temperature": self.temperature, "seed": self.seed}

    @property
    def bound_to(self) -> float | None:
        """The temperature of the draws."""
        return self.temperature

    def classes_drawn(self, rows_BN: Any) -> Any:
        """Return the drawn classes, (B, n) int64, sorted in each row."""
        return as_int64(rows_BN)

    def _encode(
        self, logits_BC: npt.NDArray[np.float32], keys_B: npt.NDArray[np.uint64], view: np.uint64, /
    ) -> npt.NDArray[np.generic]:
        drawn_BN = _draw(
            logits_BC, self.draws, self.temperature, np.uint64(self.seed), view, keys_B
        )
        return drawn_BN.astype(self.dtype)

    def _decode(self, rows_BW: Any, _temperature: float, /) -> Any:
        xp = array_namespace(rows_BW)
        shares_BC = as_float32(_counts(as_int64(rows_BW), self.num_classes)) / self.draws
        logs_BC = xp.log(xp.where(shares_BC > 0, shares_BC, xp.ones_like(shares_BC)))
        unseen = xp.full_like(shares_BC, LOG_UNSEEN)
        return self.temperature * xp.where(shares_BC > 0, logs_BC, unseen)

    def _sparse(self, rows_BW: Any, _temperature: float, /) -> SparseProbabilities:
        import torch

        drawn_BN = as_int64(rows_BW)
        counts_BN = torch.searchsorted(drawn_BN, drawn_BN, right=True)
        counts_BN -= torch.searchsorted(
            drawn_BN, drawn_BN
        )  # rows are sorted, so this counts each class
        share = torch.full_like(drawn_BN, 1 / self.draws, dtype=torch.float32)
        return SparseProbabilities(
            indices=drawn_BN,
            excess=share,
            rest=torch.zeros_like(share[:, :1]),
            negative_entropy=(counts_BN * share).log().mean(dim=1),
        )

    def _in_range(self, logits_BC: npt.NDArray[np.float64], /) -> npt.NDArray[np.bool_]:
        return np.ones(len(logits_BC), dtype=np.bool_)


def _counts(drawn_BN: Any, num_classes: int) -> Any:
    """Return the count of each class in each row, (B, C) integers."""
    xp = array_namespace(drawn_BN)
    num_rows = drawn_BN.shape[0]
    if is_torch_array(drawn_BN):
        counts = xp.zeros((num_rows, num_classes), dtype=xp.int32, device=device(drawn_BN))
        return counts.scatter_add_(1, drawn_BN, xp.ones_like(drawn_BN, dtype=xp.int32))
    first_of_row = num_classes * np.arange(num_rows)[:, None]
    counts = np.bincount((first_of_row + drawn_BN).ravel(), minlength=num_rows * num_classes)
    return counts.reshape(num_rows, num_classes)


@compiled(nogil=True)
def _draw(
    logits_BC: npt.NDArray[np.float32],
    draws: int,
    temperature: float,
    seed: np.uint64,
    view: np.uint64,
    keys_B: npt.NDArray[np.uint64],
) -> npt.NDArray[np.int64]:
    """Return the drawn classes of each row, (B, n), sorted."""
    num_rows, num_classes = logits_BC.shape
    drawn = np.empty((num_rows, draws), dtype=np.int64)
    weights = np.empty(num_classes, dtype=np.float64)
    for b in range(num_rows):
        largest = np.float64(logits_BC[b].max())
        total = 0.0
        last = 0  # last class with a weight above 0; rounding must not move a draw past it
        for c in range(num_classes):
            weights[c] = np.exp((np.float64(logits_BC[b, c]) - largest) / temperature)
            total += weights[c]
            if weights[c] > 0:
                last = c
        first, _, _, _ = philox(seed, _STREAM_DRAWS, keys_B[b], view, np.uint64(0))
        offset = uniform(first)
        c = 0
        reached = weights[0]
        for i in range(draws):
            point = (i + offset) / draws * total
            while reached <= point and c < last:
                c += 1
                reached += weights[c]
            drawn[b, i] = c
    return drawn
