"""How a row of logits is stored: encode and decode side by side, each with its stated error.

The arithmetic is written once against the array namespace of its argument, so the same lines
encode torch tensors on the device, decode them in the loader, and read a store with numpy alone.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace

from kdcache.errors import ConfigError


class Codec(Protocol):
    """Rows of logits to rows of stored numbers and back. Logits count up to a constant per row."""

    @property
    def name(self) -> str:
        """Under which a manifest names it."""

    @property
    def dtype(self) -> npt.DTypeLike:
        """Of the stored numbers."""

    def width(self, num_classes: int) -> int:
        """Return how many numbers one row takes."""

    def encode(self, logits_BC: Any) -> Any:
        """Return (B, width) stored numbers for (B, C) float32 logits, numpy or torch."""

    def decode(self, rows_BW: Any) -> Any:
        """Return (B, C) float32 logits for stored rows, numpy or torch."""


class Dense:
    """float16 with the row's mean removed.

    Error of a centred logit z: at most |z| 2^-11 + 2^-25, for |z| <= 65,504.
    """

    name = "dense"
    dtype = np.float16

    def width(self, num_classes: int) -> int:
        """Return C."""
        return num_classes

    def encode(self, logits_BC: Any) -> Any:
        """Centre and round."""
        xp = array_namespace(logits_BC)
        centred_BC = logits_BC - xp.mean(logits_BC, axis=1, keepdims=True)
        return xp.astype(centred_BC, xp.float16)

    def decode(self, rows_BW: Any) -> Any:
        """Widen."""
        xp = array_namespace(rows_BW)
        return xp.astype(rows_BW, xp.float32)


class Float32:
    """Exact, for tests and comparisons."""

    name = "float32"
    dtype = np.float32

    def width(self, num_classes: int) -> int:
        """Return C."""
        return num_classes

    def encode(self, logits_BC: Any) -> Any:
        """Return the logits."""
        return logits_BC

    def decode(self, rows_BW: Any) -> Any:
        """Return the logits."""
        return rows_BW


CODECS: dict[str, Codec] = {codec.name: codec for codec in (Dense(), Float32())}


def codec_named(name: str) -> Codec:
    """Return a codec.

    Raises:
        ConfigError: if there is none of that name; lists those that are.
    """
    if name not in CODECS:
        raise ConfigError(f"codec is {name!r}, expected one of {', '.join(CODECS)}")
    return CODECS[name]
