"""The base class of codecs, which encode logits as stored rows and decode them.

Encoding runs on the CPU, row by row. The bytes of a row depend on its logits, view key and view
only, not on other rows of the batch. So a build that was killed and runs again writes the same
bytes, whatever its batches are. The compiled parts release the GIL.

Decoding works on whole batches, through the array API of its argument: torch on the device of the
rows in a training loop, numpy if a store is read without torch.
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
    """Encodes rows of C logits as rows of stored numbers, up to a constant per row.

    `kdcache.store.codecs.registry.codec_from` constructs a codec from its `settings` and `arrays`.
    `str` returns the text form that `--codec` reads.
    """

    num_classes: int
    """Number of classes C."""

    name: ClassVar[str] = ""
    """Name in the registry; empty for a user's codec, whose name is module:class."""

    is_exact: ClassVar[bool] = False
    """True if decoding returns every logit bit for bit."""

    request_parameters: ClassVar[Mapping[str, tuple[type, int]]] = {}
    """The parameters of `--codec`: name -> (int or float, minimum). A float must be above its
    minimum, an int at least the minimum."""

    @classmethod
    def spelling(cls) -> str:
        """Return the name of this codec in a store and in `--codec`."""
        return cls.name or f"{cls.__module__}:{cls.__qualname__}"

    @classmethod
    def require_fits(
        cls,
        parameters: Mapping[str, int | float],
        *,
        num_rows: int,
        num_classes: int,
    ) -> None:
        """Check requested parameters against the size of the data. By default nothing is checked.

        Raises:
            ConfigError: if a parameter is too large for the number of classes or fitted rows.
        """
        del parameters, num_rows, num_classes

    @classmethod
    def from_request(
        cls, parameters: Mapping[str, int | float], fitted_NC: npt.NDArray[np.float32]
    ) -> Self:
        """Return the codec of a request.

        Args:
            parameters: the given parameters, a part of `request_parameters`.
            fitted_NC: (N, C) clean logits, to which a codec may be fitted.
        """
        return cls(fitted_NC.shape[1], **parameters)

    @classmethod
    def from_description(
        cls,
        num_classes: int,
        parameters: Mapping[str, Any],
        arrays: Mapping[str, npt.NDArray[np.float32]],
    ) -> Self:
        """Return the codec of a store.

        Args:
            num_classes: number of classes C.
            parameters: the `settings`, without the name and `num_classes`.
            arrays: the `arrays` of the codec.
        """
        del arrays
        return cls(num_classes, **parameters)

    @property
    @abstractmethod
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored numbers; uint8 if a row mixes types."""

    @property
    @abstractmethod
    def row_width(self) -> int:
        """Number of stored numbers of a row."""

    @property
    def row_bytes(self) -> int:
        """Size of a row in bytes."""
        return self.row_width * self.dtype.itemsize

    @property
    def parameters(self) -> dict[str, int | float]:
        """The parameters by name, in the order of the text form."""
        return {}

    @property
    def settings(self) -> dict[str, Any]:
        """JSON content from which, with `arrays`, the codec can be constructed."""
        return {"codec": self.spelling(), "num_classes": self.num_classes, **self.parameters}

    @property
    def arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """The fitted arrays by name; empty for a codec that is not fitted."""
        return {}

    @property
    def bound_to(self) -> float | None:
        """The only temperature at which the rows can be used; None: any temperature."""
        return None

    def __str__(self) -> str:
        words = ", ".join(f"{name}={value}" for name, value in self.parameters.items())
        return f"{self.spelling()}({words})" if words else self.spelling()

    def encode(
        self, logits_BC: Any, *, view_keys: npt.ArrayLike, view: int
    ) -> npt.NDArray[np.generic]:
        """Return the stored rows, (B, row_width) of `dtype`, as a numpy array.

        Args:
            logits_BC: (B, C) float32, `representable`; numpy, or torch on any device.
            view_keys: (B,) integers, the view key of each row's image (`Beton.view_keys`), for
                codecs that draw random numbers. So a row is the same for the same image in any
                order of the data.
            view: the view of all rows.
        """
        keys = np.asarray(view_keys).astype(np.uint64)
        return self._encode(self._on_host(logits_BC), keys, np.uint64(view))

    def decode(self, rows_BW: Any, *, temperature: float | None = None) -> Any:
        """Return finite logits, (B, C) float32, in the library and on the device of the rows.

        Args:
            rows_BW: (B, row_width) of `dtype`, numpy or torch.
            temperature: the temperature at which the logits will be used. `topk` computes its tail
                for it (None means 1). Bound rows accept only `bound_to` or None.

        Raises:
            ConfigError: if the rows are bound to another temperature.
        """
        self._require_bound_to(temperature)
        return self._decode(rows_BW, 1.0 if temperature is None else temperature)

    def sparse(self, rows_BW: Any, *, temperature: float) -> SparseProbabilities | None:
        """Return softmax(decode(rows) / T) in sparse form, without decoding to (B, C).

        The rows must be a torch tensor. Returns None if the codec has no sparse form.

        Raises:
            ConfigError: if the rows are bound to another temperature.
        """
        self._require_bound_to(temperature)
        return self._sparse(rows_BW, temperature)

    def representable(self, logits_BC: Any) -> npt.NDArray[np.bool_]:
        """Return whether the logits of each row are finite and in the codec's range, (B,) bool."""
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
                "draws at that temperature. Build a store with another --codec to use other "
                "temperatures"
            )

    @abstractmethod
    def _encode(
        self,
        logits_BC: npt.NDArray[np.float32],
        keys_B: npt.NDArray[np.uint64],
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
    """Return the largest minus the smallest logit of each row, (B,)."""
    return np.asarray(logits_BC.max(axis=1) - logits_BC.min(axis=1))


def as_float32(array: Any) -> Any:
    """Convert a numpy or torch array to float32."""
    xp = array_namespace(array)
    return xp.astype(array, xp.float32)
