"""The k largest logits, and the others in a basis that was fitted to the clean pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace, device, is_torch_array

from kdcache.compiled import compiled
from kdcache.errors import ConfigError
from kdcache.store.codecs.codec import Codec, as_float32, spread
from kdcache.store.codecs.dense import LARGEST_FLOAT16
from kdcache.store.codecs.kept_classes import kept_classes
from kdcache.store.codecs.largest import below_largest, largest_in_rows
from kdcache.store.codecs.rows import Fields, classes, index_type, pack, replace_in_rows, unpack

EXACT_MASS_TEMPERATURE = 2.0
"""Where the tail's share of the probability is exact: in the middle of the usual temperatures."""

NEGLIGIBLE = 1e-5
"""Of the largest deviation: a component below it is rounding, not data."""

FINE = 16
"""Coefficients of a byte each, when nothing else is said. Most of a tail's shape is in the first
few; the others are small, so that a coarse step of theirs is a small error: at equal bytes, twice
as many components keep more than finer steps do (benchmarks/codecs.py)."""

LARGEST_FINE, LARGEST_COARSE = 127, 7
"""Steps of a coefficient, to either side of 0, in a byte and in half a byte."""


DEFAULT_COEFFICIENTS = 64


@dataclass(frozen=True)
class LowRank(Codec):
    """The k largest in float16, and r coefficients for the shape of the tail.

    k indices of 1, 2 or 4 bytes, 2 (k - 1) + 8 bytes, a byte for each of the first coefficients,
    and half a byte for each of the others, with 4 bytes for their own step. The basis, principal
    components of the rows with their k largest lowered to the largest of the tail, is fitted once
    and stored beside the rows; each component has the length of its standard deviation, so that one
    step size suits many coefficients. For T > 1, where the uniform tail of `topk` is another
    objective.

    Error of a kept logit's distance d from the row's largest: at most d 2^-11 + 2^-25. Of the tail:
    what the basis leaves, which `kdcache.store.codecs.fidelity` measures, and half a step of each
    coefficient. The tail's share of the probability is exact at T = 2. Range: spread <= 65,504.
    """

    k: int
    """Logits kept, in [1, C]."""
    mean: npt.NDArray[np.float32] = field(repr=False, compare=False)
    """(C,) of the rows it was fitted to, their own means removed."""
    basis: npt.NDArray[np.float32] = field(repr=False, compare=False)
    """(r, C), orthogonal; a row of zeros where the data have fewer dimensions."""
    fine: int = FINE
    """Coefficients of a byte each, the first; all where there are no more."""
    _placed: dict[Any, tuple[Any, Any]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    name: ClassVar[str] = "lowrank"
    request_parameters: ClassVar[Mapping[str, tuple[type, int]]] = {
        "k": (int, 1),
        "r": (int, 1),
        "fine": (int, 0),
    }

    @classmethod
    def require_fits(
        cls, parameters: Mapping[str, int | float], *, num_rows: int, num_classes: int
    ) -> None:
        """Check k against the number of classes, and r against that and the rows to fit to."""
        kept_classes(cls.name, parameters, num_classes)
        if "r" in parameters:
            require_components(int(parameters["r"]), num_rows, num_classes)

    @classmethod
    def from_request(
        cls, parameters: Mapping[str, int | float], fitted_NC: npt.NDArray[np.float32]
    ) -> Self:
        """Return the codec fitted to rows; k is 10 and r 64, or less where the data are small."""
        num_rows, num_classes = fitted_NC.shape
        default = max(1, min(DEFAULT_COEFFICIENTS, num_rows, num_classes))
        return cls.fit(
            fitted_NC,
            k=kept_classes(cls.name, parameters, num_classes),
            r=int(parameters.get("r", default)),
            fine=int(parameters.get("fine", FINE)),
        )

    @classmethod
    def from_description(
        cls,
        num_classes: int,
        parameters: Mapping[str, Any],
        arrays: Mapping[str, npt.NDArray[np.float32]],
    ) -> Self:
        """Return the codec with a store's basis."""
        basis = arrays["basis"]
        # The first version of this codec had a byte for every coefficient, and no word for it.
        fine = parameters.get("fine", len(basis))
        return cls(num_classes, parameters["k"], arrays["mean"], basis, fine)

    @classmethod
    def fit(cls, logits_NC: npt.NDArray[np.float32], *, k: int, r: int, fine: int = FINE) -> Self:
        """Fit a basis to rows of logits; equal rows in equal order give an equal basis.

        Args:
            logits_NC: (N, C) finite.
            k: logits kept, in [1, C].
            r: components, in [1, min(N, C)].
            fine: of which so many get a byte, at least 0.
        """
        num_rows, num_classes = logits_NC.shape
        require_components(r, num_rows, num_classes)
        _, values = largest_in_rows(logits_NC, min(k + 1, num_classes))
        lowered_NC = np.minimum(logits_NC, values[:, -1:])
        lowered_NC -= lowered_NC.mean(axis=1, keepdims=True)
        mean_C = lowered_NC.mean(axis=0)
        basis_RC = _principal(lowered_NC - mean_C, r)
        return cls(num_classes, k, mean_C, basis_RC, fine)

    def truncated(self, r: int) -> Self:
        """Return the codec with the first r components alone."""
        return replace(self, basis=self.basis[:r])

    @property
    def r(self) -> int:
        """Coefficients of a row."""
        return len(self.basis)

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
        """Logits kept, coefficients, and how many of these are fine where it is not as usual."""
        given: dict[str, int | float] = {"k": self.k, "r": self.r}
        return given if self.fine == FINE else given | {"fine": self.fine}

    @property
    def settings(self) -> dict[str, Any]:
        """With `fine` in any case: what is usual may change."""
        return super().settings | {"fine": self.fine}

    @property
    def arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """Mean and basis."""
        return {"mean": self.mean, "basis": self.basis}

    @property
    def num_fine(self) -> int:
        """Coefficients of a byte each."""
        return min(self.fine, self.r)

    @property
    def _fields(self) -> Fields:
        pairs = -(-(self.r - self.num_fine) // 2)
        return np.dtype(
            [
                ("indices", index_type(self.num_classes), (self.k,)),
                ("below", "<f2", (self.k - 1,)),  # the largest is 0 below itself
                ("offset", "<f4", (1,)),
                ("step", "<f4", (1,)),
                ("coefficients", "<i1", (self.num_fine,)),
                *([("coarse_step", "<f4", (1,)), ("pairs", "<u1", (pairs,))] if pairs else []),
            ]
        )

    @cached_property
    def _projection(self) -> npt.NDArray[np.float32]:
        """The basis divided by its squared lengths: rows times it are coefficients."""
        exact_RC = self.basis.astype(np.float64)
        squares_R1 = (exact_RC**2).sum(axis=1, keepdims=True)
        scaled_RC = np.divide(exact_RC, squares_R1, out=exact_RC, where=squares_R1 > 0)
        return np.ascontiguousarray(scaled_RC.T, dtype=np.float32)

    def _encode(
        self, logits_BC: npt.NDArray[np.float32], _ids: npt.NDArray[np.uint64], _view: np.uint64, /
    ) -> npt.NDArray[np.generic]:
        indices, values = largest_in_rows(logits_BC, min(self.k + 1, self.num_classes))
        indices_BK, values_BK, ceiling_B = indices[:, : self.k], values[:, : self.k], values[:, -1]
        exact_BR = _project(logits_BC, ceiling_B, self.mean, self._projection)
        step_B1, fine_BR = _rounded(exact_BR[:, : self.num_fine], LARGEST_FINE)
        coarse_step_B1, coarse_BR = _rounded(exact_BR[:, self.num_fine :], LARGEST_COARSE)
        rounded_BR = np.concatenate([step_B1 * fine_BR, coarse_step_B1 * coarse_BR], axis=1)
        parts: dict[str, npt.NDArray[Any]] = {
            "indices": indices_BK,
            "below": below_largest(values_BK),
            "offset": _offset(logits_BC, indices_BK, rounded_BR, self.mean, self.basis)[:, None],
            "step": step_B1,
            "coefficients": fine_BR,
        }
        if coarse_BR.shape[1]:
            parts |= {"coarse_step": coarse_step_B1, "pairs": _as_pairs(coarse_BR)}
        return pack(self._fields, parts)

    def _decode(self, rows_BW: Any, _temperature: float, /) -> Any:
        fields = unpack(self._fields, rows_BW)
        xp = array_namespace(rows_BW)
        mean_C, basis_RC = self._beside(rows_BW)
        coefficients_BR = fields["step"] * as_float32(fields["coefficients"])
        if "pairs" in fields:
            coarse_BR = _from_pairs(fields["pairs"])[:, : self.r - self.num_fine]
            coarse_BR = fields["coarse_step"] * as_float32(coarse_BR)
            coefficients_BR = xp.concat([coefficients_BR, coarse_BR], axis=1)
        tail_BC = _product(coefficients_BR, basis_RC) + (mean_C + fields["offset"])
        below_BK = -as_float32(fields["below"])
        kept_BK = xp.concat([xp.zeros_like(fields["offset"]), below_BK], axis=1)
        return replace_in_rows(tail_BC, classes(fields["indices"]), kept_BK)

    def _in_range(self, logits_BC: npt.NDArray[np.float64], /) -> npt.NDArray[np.bool_]:
        return spread(logits_BC) <= LARGEST_FLOAT16

    def _beside(self, rows_BW: Any) -> tuple[Any, Any]:
        """Return mean and basis in the library and on the device of the rows, copied there once."""
        if not is_torch_array(rows_BW):
            return self.mean, self.basis
        place = device(rows_BW)
        if place not in self._placed:
            xp = array_namespace(rows_BW)
            self._placed[place] = (
                xp.asarray(self.mean, device=place),
                xp.asarray(self.basis, device=place),
            )
        return self._placed[place]


def require_components(r: int, num_rows: int, num_classes: int) -> None:
    """Raise a ConfigError unless rows of logits have as many components."""
    if not 1 <= r <= min(num_rows, num_classes):
        raise ConfigError(
            f"r of lowrank is {r}, expected at most {min(num_rows, num_classes)}: the smaller "
            f"of {num_classes:,} classes and {num_rows:,} rows to fit a basis to"
        )


def _principal(rows_NC: npt.NDArray[np.float32], r: int) -> npt.NDArray[np.float32]:
    """Return the first r principal components, (r, C), each as long as its standard deviation."""
    exact_NC = rows_NC.astype(np.float64)
    num_rows, num_classes = exact_NC.shape
    if num_classes <= num_rows:
        variances, vectors = np.linalg.eigh(exact_NC.T @ exact_NC / num_rows)
        basis_RC = (vectors * np.sqrt(np.maximum(variances, 0))).T[::-1][:r]
    else:  # the same, from the smaller matrix of inner products
        _, vectors = np.linalg.eigh(exact_NC @ exact_NC.T)
        basis_RC = (vectors.T @ exact_NC)[::-1][:r] / np.sqrt(num_rows)
    deviations_R = np.linalg.norm(basis_RC, axis=1)
    basis_RC[deviations_R <= NEGLIGIBLE * deviations_R[0]] = 0
    # A component and its opposite are as good: the one whose largest entry is positive.
    largest_R = np.abs(basis_RC).argmax(axis=1)
    signs_R = np.where(basis_RC[np.arange(r), largest_R] < 0, -1.0, 1.0)
    return np.ascontiguousarray(basis_RC * signs_R[:, None], dtype=np.float32)


def _rounded(
    exact_BR: npt.NDArray[np.float32], largest: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the step of each row, (B, 1), and its coefficients in steps, whole numbers (B, r)."""
    step_B1 = np.abs(exact_BR).max(axis=1, keepdims=True, initial=0) / np.float32(largest)
    return step_B1, np.rint(exact_BR / np.where(step_B1 > 0, step_B1, np.float32(np.inf)))


def _as_pairs(coarse_BR: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Return two coefficients to a byte: the first half of them low, the second half high."""
    width = -(-coarse_BR.shape[1] // 2)
    padded_BR = np.pad(coarse_BR, ((0, 0), (0, 2 * width - coarse_BR.shape[1])))
    halves_BR = (padded_BR + (LARGEST_COARSE + 1)).astype(np.uint8)
    return np.asarray(halves_BR[:, :width] | halves_BR[:, width:] << 4, dtype=np.uint8)


def _from_pairs(pairs_BP: Any) -> Any:
    """Return the coefficients in steps, (B, 2 P)."""
    xp = array_namespace(pairs_BP)
    halves_BR = xp.concat([pairs_BP & 15, pairs_BP >> 4], axis=1)
    return as_float32(halves_BR) - (LARGEST_COARSE + 1)


def _product(coefficients_BR: Any, basis_RC: Any) -> Any:
    """Return a float32 matrix product, also inside torch's autocast."""
    if not is_torch_array(coefficients_BR):
        return coefficients_BR @ basis_RC
    import torch

    with torch.autocast(coefficients_BR.device.type, enabled=False):
        return coefficients_BR @ basis_RC


@compiled(nogil=True)
def _project(
    logits_BC: npt.NDArray[np.float32],
    ceiling_B: npt.NDArray[np.float32],
    mean_C: npt.NDArray[np.float32],
    projection_CR: npt.NDArray[np.float32],
) -> npt.NDArray[np.float32]:
    """Return the coefficients (B, r) of each row, whatever rows stand beside it.

    A library's matrix product adds in an order that depends on the number of rows.

    Args:
        logits_BC: (B, C).
        ceiling_B: (B,) the largest logit of each tail, to which those kept are lowered.
        mean_C: (C,) of the basis.
        projection_CR: (C, r).
    """
    num_rows, num_classes = logits_BC.shape
    coefficients = np.zeros((num_rows, projection_CR.shape[1]), dtype=np.float32)
    for b in range(num_rows):
        ceiling = ceiling_B[b]
        total = 0.0
        for c in range(num_classes):
            total += np.float64(min(logits_BC[b, c], ceiling))
        row_mean = total / num_classes
        for c in range(num_classes):
            lowered = np.float64(min(logits_BC[b, c], ceiling)) - row_mean
            value = np.float32(lowered - mean_C[c])
            for j in range(projection_CR.shape[1]):
                coefficients[b, j] += value * projection_CR[c, j]
    return coefficients


@compiled(nogil=True)
def _offset(
    logits_BC: npt.NDArray[np.float32],
    indices_BK: npt.NDArray[np.int64],
    coefficients_BR: npt.NDArray[np.float32],
    mean_C: npt.NDArray[np.float32],
    basis_RC: npt.NDArray[np.float32],
) -> npt.NDArray[np.float64]:
    """Return what to add to each decoded tail, (B,), from the row's largest logit; or 0."""
    num_rows, num_classes = logits_BC.shape
    offsets = np.zeros(num_rows, dtype=np.float64)
    if indices_BK.shape[1] == num_classes:
        return offsets
    decoded = np.empty(num_classes, dtype=np.float32)
    kept = np.zeros(num_classes, dtype=np.bool_)
    for b in range(num_rows):
        decoded[:] = mean_C
        for j in range(basis_RC.shape[0]):
            for c in range(num_classes):
                decoded[c] += coefficients_BR[b, j] * basis_RC[j, c]
        kept[indices_BK[b]] = True
        offsets[b] = _tail_level(logits_BC[b], kept) - _tail_level(decoded, kept)
        offsets[b] -= logits_BC[b, indices_BK[b, 0]]
        kept[indices_BK[b]] = False
    return offsets


@compiled(nogil=True)
def _tail_level(logits_C: npt.NDArray[np.float32], kept_C: npt.NDArray[np.bool_]) -> np.float64:
    """Return T logsumexp(z / T) over the tail, at the temperature where it is kept."""
    largest = -np.inf
    for c in range(len(logits_C)):
        if not kept_C[c]:
            largest = max(largest, np.float64(logits_C[c]))
    weight = 0.0
    for c in range(len(logits_C)):
        if not kept_C[c]:
            weight += np.exp((np.float64(logits_C[c]) - largest) / EXACT_MASS_TEMPERATURE)
    return largest + EXACT_MASS_TEMPERATURE * np.log(weight)
