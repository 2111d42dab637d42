"""What every codec is: encode and decode side by side, each with its stated error.

Encoding runs on the host, row by row: the bytes of a row depend on its logits, its sample id and
its view, and on no other row of the batch. So a build that was killed writes the same bytes again,
whatever it is cut into. The compiled parts release the interpreter, for a thread beside a GPU.

Decoding is arithmetic on whole batches, written once for the array library of its argument: torch
on the rows' device in a training loop, numpy where a store is read without torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace, is_torch_array

from kdcache.errors import ConfigError
from kdcache.store.codecs.sparse import SparseProbabilities


@dataclass(frozen=True)
class Codec(ABC):
    """Rows of C logits to rows of stored numbers and back. Logits count up to a constant per row.

    `settings` and `arrays` rebuild it: `kdcache.store.codecs.registry.codec_from`. `str` writes it
    the way `--codec` reads it.
    """

    num_classes: int
    """C."""

    name: ClassVar[str] = ""
    """Its name in the registry; empty for a codec of the user's own, whose name is module:class."""

    is_exact: ClassVar[bool] = False
    """True if decoding gives every logit back, bit for bit."""

    request_parameters: ClassVar[Mapping[str, tuple[type, int]]] = {}
    """The parameters that `--codec` takes: name -> (int or float, minimum); a float must be above
    its minimum."""

    @classmethod
    def spelling(cls) -> str:
        """Return the name by which a store and `--codec` call this codec."""
        return cls.name or f"{cls.__module__}:{cls.__qualname__}"

    @classmethod
    def require_fits(
        cls,
        parameters: Mapping[str, int | float],
        *,
        num_rows: int,
        num_classes: int,
    ) -> None:
        """Check requested parameters against the data; by default everything fits.

        Raises:
            ConfigError: if a parameter does not fit the number of classes or of fitted rows.
        """
        del parameters, num_rows, num_classes

    @classmethod
    def from_request(
        cls, parameters: Mapping[str, int | float], fitted_NC: npt.NDArray[np.float32]
    ) -> Self:
        """Return the codec of a request.

        Args:
            parameters: those of `request_parameters` that were given.
            fitted_NC: (N, C) clean logits, for a codec that is fitted to them.
        """
        return cls(fitted_NC.shape[1], **parameters)

    @classmethod
    def from_description(
        cls,
        num_classes: int,
        parameters: Mapping[str, Any],
        arrays: Mapping[str, npt.NDArray[np.float32]],
    ) -> Self:
        """Return the codec that a store describes.

        Args:
            num_classes: C.
            parameters: the rest of `settings`.
            arrays: what it was fitted to.
        """
        del arrays
        return cls(num_classes, **parameters)

    @property
    @abstractmethod
    def dtype(self) -> np.dtype[Any]:
        """Of the stored numbers; uint8 where a row mixes types."""

    @property
    @abstractmethod
    def row_width(self) -> int:
        """How many stored numbers one row takes."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.row_width * self.dtype.itemsize

    @property
    def parameters(self) -> dict[str, int | float]:
        """What was chosen for it, in the order in which it is written."""
        return {}

    @property
    def settings(self) -> dict[str, Any]:
        """JSON content that rebuilds it, together with `arrays`."""
        return {"codec": self.spelling(), "num_classes": self.num_classes, **self.parameters}

    @property
    def arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """What it was fitted to, by name."""
        return {}

    @property
    def bound_to(self) -> float | None:
        """The one temperature at which its rows can be used; None: every temperature."""
        return None

    def __str__(self) -> str:
        words = ", ".join(f"{name}={value}" for name, value in self.parameters.items())
        return f"{self.spelling()}({words})" if words else self.spelling()

    def encode(
        self, logits_BC: Any, *, sample_ids: npt.ArrayLike, view: int
    ) -> npt.NDArray[np.generic]:
        """Return stored rows, (B, row_width) of `dtype`, in the host's memory.

        Args:
            logits_BC: (B, C) float32, finite and `representable`: numpy, or torch on any device.
            sample_ids: (B,) integers, of each row.
            view: of all rows.
        """
        ids = np.asarray(sample_ids).astype(np.uint64)
        return self._encode(self._on_host(logits_BC), ids, np.uint64(view))

    def decode(self, rows_BW: Any, *, temperature: float | None = None) -> Any:
        """Return (B, C) float32 logits, finite, in the library and on the device of the rows.

        Args:
            rows_BW: (B, row_width) of `dtype`, numpy or torch.
            temperature: at which the logits will be used; matters to `topk` alone, whose tail is
                right at one temperature at a time (1 when left out).

        Raises:
            ConfigError: if the rows are bound to another temperature.
        """
        self._require_bound_to(temperature)
        return self._decode(rows_BW, 1.0 if temperature is None else temperature)

    def sparse(self, rows_BW: Any, *, temperature: float) -> SparseProbabilities | None:
        """Return the softmax of `decode(rows) / T` without its (B, C) numbers, of torch rows.

        None where a codec has no such form.

        Raises:
            ConfigError: if the rows are bound to another temperature.
        """
        self._require_bound_to(temperature)
        return self._sparse(rows_BW, temperature)

    def representable(self, logits_BC: Any) -> npt.NDArray[np.bool_]:
        """Return for each row whether its logits are finite and within the codec's range, (B,)."""
        logits = self._on_host(logits_BC)
        is_finite = np.logical_and.reduce(np.isfinite(logits), axis=1)
        # float64: the spread of finite float32 numbers may be infinite in float32.
        exact = np.where(is_finite[:, None], logits, 0).astype(np.float64)
        return np.asarray(is_finite & self._in_range(exact))

    def _sparse(self, rows_BW: Any, temperature: float, /) -> SparseProbabilities | None:  # noqa: ARG002
        return None

    def _require_bound_to(self, temperature: float | None) -> None:
        if temperature is not None and self.bound_to not in {None, temperature}:
            raise ConfigError(
                f"temperature is {temperature}, expected {self.bound_to}: rows of {self} hold "
                "draws at that temperature. Build a store with another --codec for this one"
            )

    @abstractmethod
    def _encode(
        self,
        logits_BC: npt.NDArray[np.float32],
        ids_B: npt.NDArray[np.uint64],
        view: np.uint64,
        /,
    ) -> npt.NDArray[np.generic]: ...

    @abstractmethod
    def _decode(self, rows_BW: Any, temperature: float, /) -> Any: ...

    @abstractmethod
    def _in_range(self, logits_BC: npt.NDArray[np.float64], /) -> npt.NDArray[np.bool_]: ...

    def _on_host(self, logits_BC: Any) -> npt.NDArray[np.float32]:
        if is_torch_array(logits_BC):
            logits_BC = logits_BC.detach().cpu().numpy()
        if logits_BC.ndim != 2 or logits_BC.shape[1] != self.num_classes:  # noqa: PLR2004
            raise ValueError(f"logits are {logits_BC.shape}, expected (B, {self.num_classes})")
        return np.ascontiguousarray(logits_BC, dtype=np.float32)


def spread(logits_BC: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the largest less the smallest logit of each row, (B,)."""
    return np.asarray(logits_BC.max(axis=1) - logits_BC.min(axis=1))


def as_float32(array: Any) -> Any:
    """Widen or narrow to float32, numpy or torch."""
    xp = array_namespace(array)
    return xp.astype(array, xp.float32)
