"""A codec that keeps the k largest logits, and the others in a basis fitted to clean logits."""

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
from kdcache.store.codecs.dense import MAX_FLOAT16
from kdcache.store.codecs.kept_classes import kept_classes
from kdcache.store.codecs.largest import below_largest, largest_in_rows
from kdcache.store.codecs.rows import Fields, as_int64, index_type, pack, replace_in_rows, unpack

EXACT_MASS_TEMPERATURE = 2.0
"""Temperature at which the tail's probability mass is exact, in the middle of the usual range."""

MIN_RELATIVE_DEVIATION = 1e-5
"""A component with a smaller standard deviation, relative to the largest, is rounding noise."""

DEFAULT_FINE = 16
"""Default number of coefficients in one byte; the others take half a byte. The first coefficients
carry most of a tail's shape. The others are small, so coarse steps make small errors: at equal
size, twice as many components are better than finer steps (benchmarks/codecs.py)."""

MAX_FINE_STEPS, MAX_COARSE_STEPS = 127, 7
"""Largest number of steps from 0 of a coefficient in one byte and in half a byte."""

DEFAULT_COEFFICIENTS = 64
"""Default of r."""


@dataclass(frozen=True)
class LowRank(Codec):
    """Stores the k largest logits as float16, and r coefficients for the shape of the tail.

    It is meant for T > 1, where the uniform tail of `topk` changes the objective.

    A row takes k class indices of 1, 2 or 4 bytes, 2 (k - 1) + 8 bytes for logits, offset and step,
    one byte for each of the first `fine` coefficients, and half a byte for each of the others plus
    4 bytes for their step.

    The basis is fitted once and stored beside the rows. It consists of the principal components of
    the fitted rows, after their k largest logits are lowered to the largest of the tail. Each
    component is as long as its standard deviation, so one step size suits many coefficients.

    The error of a kept logit's distance d from the row's largest is at most d 2^-11 + 2^-25. The
    error of the tail is what the basis cannot represent, which `kdcache.store.codecs.fidelity`
    measures, and half a step of each coefficient. The tail's probability mass is exact at T = 2.
    Range: spread <= 65,504.
    """

    k: int
    """Number of logits kept, in [1, C]."""
    mean: npt.NDArray[np.float32] = field(repr=False, compare=False)
    """(C,) mean of the fitted rows, after centring each row."""
    basis: npt.NDArray[np.float32] = field(repr=False, compare=False)
    """(r, C) orthogonal rows; zeros if the data have fewer dimensions."""
    fine: int = DEFAULT_FINE
    """Number of coefficients, from the first, in one byte; all if r is smaller."""
    _device_arrays: dict[Any, tuple[Any, Any]] = field(
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
        """Check k against the number of classes, and r against classes and fitted rows."""
        kept_classes(cls.name, parameters, num_classes)
        if "r" in parameters:
            require_components(int(parameters["r"]), num_rows, num_classes)

    @classmethod
    def from_request(
        cls, parameters: Mapping[str, int | float], fitted_NC: npt.NDArray[np.float32]
    ) -> Self:
        """Return the codec fitted to rows; by default k = 10 and r = 64, or less for small data."""
        num_rows, num_classes = fitted_NC.shape
        default = max(1, min(DEFAULT_COEFFICIENTS, num_rows, num_classes))
        return cls.fit(
            fitted_NC,
            k=kept_classes(cls.name, parameters, num_classes),
            r=int(parameters.get("r", default)),
            fine=int(parameters.get("fine", DEFAULT_FINE)),
        )

    @classmethod
    def from_description(
        cls,
        num_classes: int,
        parameters: Mapping[str, Any],
        arrays: Mapping[str, npt.NDArray[np.float32]],
    ) -> Self:
        """Return the codec of a store, with its basis."""
        basis = arrays["basis"]
        return cls(num_classes, parameters["k"], arrays["mean"], basis, parameters["fine"])

    @classmethod
    def fit(
        cls, logits_NC: npt.NDArray[np.float32], *, k: int, r: int, fine: int = DEFAULT_FINE
    ) -> Self:
        """Fit a basis to logits. The result depends on the rows and their order only.

        Args:
            logits_NC: (N, C) finite.
            k: number of logits kept, in [1, C].
            r: number of components, in [1, min(N, C)].
            fine: number of coefficients in one byte, at least 0.

        Raises:
            ConfigError: if r is out of range.
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
        """Return the codec with the first r components only."""
        return replace(self, basis=self.basis[:r])

    @property
    def r(self) -> int:
        """Number of coefficients of a row."""
        return len(self.basis)

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
        """The parameters k and r, and `fine` unless it has its default."""
        given: dict[str, int | float] = {"k": self.k, "r": self.r}
        return given if self.fine == DEFAULT_FINE else given | {"fine": self.fine}

    @property
    def settings(self) -> dict[str, Any]:
        """The settings, always with `fine`, because its default may change."""
        return super().settings | {"fine": self.fine}

    @property
    def arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """Mean and basis."""
        return {"mean": self.mean, "basis": self.basis}

    @property
    def num_fine(self) -> int:
        """Number of coefficients that are stored in one byte."""
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
        """(C, r) map from centred rows to coefficients: the basis over its squared lengths."""
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
        step_B1, fine_BR = _quantise(exact_BR[:, : self.num_fine], MAX_FINE_STEPS)
        coarse_step_B1, coarse_BR = _quantise(exact_BR[:, self.num_fine :], MAX_COARSE_STEPS)
        rounded_BR = np.concatenate([step_B1 * fine_BR, coarse_step_B1 * coarse_BR], axis=1)
        parts: dict[str, npt.NDArray[Any]] = {
            "indices": indices_BK,
            "below": below_largest(values_BK),
            "offset": _offset(logits_BC, indices_BK, rounded_BR, self.mean, self.basis)[:, None],
            "step": step_B1,
            "coefficients": fine_BR,
        }
        if coarse_BR.shape[1]:
            parts |= {"coarse_step": coarse_step_B1, "pairs": _pack_half_bytes(coarse_BR)}
        return pack(self._fields, parts)

    def _decode(self, rows_BW: Any, _temperature: float, /) -> Any:
        fields = unpack(self._fields, rows_BW)
        xp = array_namespace(rows_BW)
        mean_C, basis_RC = self._arrays_like(rows_BW)
        coefficients_BR = fields["step"] * as_float32(fields["coefficients"])
        if "pairs" in fields:
            coarse_BR = _unpack_half_bytes(fields["pairs"])[:, : self.r - self.num_fine]
            coarse_BR = fields["coarse_step"] * as_float32(coarse_BR)
            coefficients_BR = xp.concat([coefficients_BR, coarse_BR], axis=1)
        tail_BC = _product(coefficients_BR, basis_RC) + (mean_C + fields["offset"])
        below_BK = -as_float32(fields["below"])
        kept_BK = xp.concat([xp.zeros_like(fields["offset"]), below_BK], axis=1)
        return replace_in_rows(tail_BC, as_int64(fields["indices"]), kept_BK)

    def _in_range(self, logits_BC: npt.NDArray[np.float64], /) -> npt.NDArray[np.bool_]:
        return spread(logits_BC) <= MAX_FLOAT16

    def _arrays_like(self, rows_BW: Any) -> tuple[Any, Any]:
        """Return mean and basis as arrays like the rows; a device gets one cached copy."""
        if not is_torch_array(rows_BW):
            return self.mean, self.basis
        target = device(rows_BW)
        if target not in self._device_arrays:
            xp = array_namespace(rows_BW)
            self._device_arrays[target] = (
                xp.asarray(self.mean, device=target),
                xp.asarray(self.basis, device=target),
            )
        return self._device_arrays[target]


def require_components(r: int, num_rows: int, num_classes: int) -> None:
    """Raise a ConfigError unless 1 <= r <= min(num_rows, num_classes)."""
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
    else:  # the same components, from the smaller Gram matrix
        _, vectors = np.linalg.eigh(exact_NC @ exact_NC.T)
        basis_RC = (vectors.T @ exact_NC)[::-1][:r] / np.sqrt(num_rows)
    deviations_R = np.linalg.norm(basis_RC, axis=1)
    basis_RC[deviations_R <= MIN_RELATIVE_DEVIATION * deviations_R[0]] = 0
    # The sign of a component is arbitrary; make its entry with the largest magnitude positive.
    largest_R = np.abs(basis_RC).argmax(axis=1)
    signs_R = np.where(basis_RC[np.arange(r), largest_R] < 0, -1.0, 1.0)
    return np.ascontiguousarray(basis_RC * signs_R[:, None], dtype=np.float32)


def _quantise(
    exact_BR: npt.NDArray[np.float32], max_steps: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the step size of each row, (B, 1), and its coefficients in steps, (B, r)."""
    step_B1 = np.abs(exact_BR).max(axis=1, keepdims=True, initial=0) / np.float32(max_steps)
    return step_B1, np.rint(exact_BR / np.where(step_B1 > 0, step_B1, np.float32(np.inf)))


def _pack_half_bytes(coarse_BR: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Pack two coefficients per byte: the first half of them in the low bits."""
    width = -(-coarse_BR.shape[1] // 2)
    padded_BR = np.pad(coarse_BR, ((0, 0), (0, 2 * width - coarse_BR.shape[1])))
    halves_BR = (padded_BR + (MAX_COARSE_STEPS + 1)).astype(np.uint8)
    return np.asarray(halves_BR[:, :width] | halves_BR[:, width:] << 4, dtype=np.uint8)


def _unpack_half_bytes(pairs_BP: Any) -> Any:
    """Return the coefficients as numbers of steps, (B, 2 P)."""
    xp = array_namespace(pairs_BP)
    halves_BR = xp.concat([pairs_BP & 15, pairs_BP >> 4], axis=1)
    return as_float32(halves_BR) - (MAX_COARSE_STEPS + 1)


def _product(coefficients_BR: Any, basis_RC: Any) -> Any:
    """Return the matrix product in float32, even under torch.autocast."""
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
    """Return the coefficients of each row, (B, r).

    The bits of a row's coefficients do not depend on the other rows. With a library's matrix
    product they would, because its order of summation depends on the number of rows.

    Args:
        logits_BC: (B, C).
        ceiling_B: (B,) the largest logit of each tail, to which the kept logits are lowered.
        mean_C: (C,) the mean of the codec.
        projection_CR: (C, r) the projection of the codec.
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
    """Return the constant to add to each decoded tail, (B,); 0 without a tail.

    It is relative to the row's largest logit.
    """
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
    """Return T logsumexp(z / T) over the tail, at T = EXACT_MASS_TEMPERATURE."""
    largest = -np.inf
    for c in range(len(logits_C)):
        if not kept_C[c]:
            largest = max(largest, np.float64(logits_C[c]))
    weight = 0.0
    for c in range(len(logits_C)):
        if not kept_C[c]:
            weight += np.exp((np.float64(logits_C[c]) - largest) / EXACT_MASS_TEMPERATURE)
    return largest + EXACT_MASS_TEMPERATURE * np.log(weight)
