"""Pack fields of different types into uint8 rows and unpack them, by a structured numpy dtype.

A field may start at any byte of a row, so it is copied before it is viewed as its own type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace, device, is_torch_array

Fields = np.dtype[np.void]
"""Type of a row: packed, little-endian; each field has a shape (n,)."""


def index_type(num_classes: int) -> str:
    """Return the smallest unsigned integer type that can hold a class index."""
    if num_classes <= 1 << 8:
        return "<u1"
    return "<u2" if num_classes <= 1 << 16 else "<u4"


def pack(fields: Fields, values: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.uint8]:
    """Return rows, (B, itemsize) uint8, from arrays (B, n) by field name."""
    rows = np.empty(len(next(iter(values.values()))), dtype=fields)
    for name, array in values.items():
        rows[name] = array
    return rows.view(np.uint8).reshape(len(rows), fields.itemsize)


def unpack(fields: Fields, rows_BW: Any) -> dict[str, Any]:
    """Return field name -> (B, n), in the library and on the device of the rows."""
    assert fields.fields is not None  # noqa: S101  (the dtype is structured)
    return {
        name: _as_type(rows_BW[:, offset : offset + kind.itemsize], kind)
        for name, (kind, offset, *_) in fields.fields.items()
    }


def _as_type(part_BW: Any, kind: np.dtype[Any]) -> Any:
    shape = (part_BW.shape[0], kind.shape[0])
    if is_torch_array(part_BW):
        xp = array_namespace(part_BW)
        return part_BW.clone().reshape(-1).view(getattr(xp, kind.base.name)).reshape(shape)
    return np.ascontiguousarray(part_BW).reshape(-1).view(kind.base).reshape(shape)


def as_int64(indices_BK: Any) -> Any:
    """Return class indices as int64, which numpy and torch can use as indices."""
    xp = array_namespace(indices_BK)
    return xp.astype(indices_BK, xp.int64)


def put_in_rows(filling_B1: Any, num_classes: int, indices_BK: Any, values_BK: Any) -> Any:
    """Return (B, C) filled with one number per row, except for values at int64 indices."""
    xp = array_namespace(filling_B1)
    shape = (filling_B1.shape[0], num_classes)
    array_BC = xp.empty(shape, dtype=filling_B1.dtype, device=device(filling_B1))
    array_BC[...] = filling_B1
    return replace_in_rows(array_BC, indices_BK, values_BK)


def replace_in_rows(array_BC: Any, indices_BK: Any, values_BK: Any) -> Any:
    """Set the values at each row's int64 indices in place, and return the array."""
    if is_torch_array(array_BC):
        return array_BC.scatter_(1, indices_BK, values_BK)
    np.put_along_axis(array_BC, indices_BK, values_BK, axis=1)
    return array_BC
