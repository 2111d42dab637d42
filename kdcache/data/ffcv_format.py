"""Define the layout of FFCV's files, version 2: header, fields, samples and allocation table.

FFCV defines the same in `ffcv.types` and `ffcv.fields`. Importing these loads torch and compiles a
numba dictionary, which takes seconds; a test compares every type here with FFCV's.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

VERSION = 2

PAGE_SIZE_BYTES = 8 << 20
"""FFCV's default page size."""

RAW_MODE = 1
"""Mode of an image that is stored as pixels."""
JPEG_MODE = 0
"""Mode of an image that is stored as a JPEG file."""

HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
"""The record at the start of the file."""

FIELD = np.dtype(
    [("type_id", "<u1"), ("name", "<u1", 16), ("arguments", "<u1", (1024,))], align=True
)
"""One record per field, after the header. A name is ASCII, padded with zeros."""

IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
"""The image in a sample's record; `data_ptr` is the offset of its first byte in the file."""

SAMPLE = np.dtype([("f0", IMAGE), ("f1", "<i8"), ("f2", "<i8")], align=True)
"""One record per sample, after the fields: image, label, sample id."""

ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
"""One record per image, in the table at the end of the file; `sample_id` is its position."""

_INT_TYPE = 1
_RGB_IMAGE_TYPE = 2
_FIELDS = {"image": _RGB_IMAGE_TYPE, "label": _INT_TYPE, "sample_id": _INT_TYPE}


def field_table() -> npt.NDArray[Any]:
    """Return the (3,) `FIELD` records of kdcache's betons: image, label and sample id."""
    table = np.zeros(len(_FIELDS), dtype=FIELD)
    for record, (name, type_id) in zip(table, _FIELDS.items(), strict=True):
        record["type_id"] = type_id
        record["name"][: len(name)] = np.frombuffer(name.encode("ascii"), dtype=np.uint8)
    return table


def digest_tables(*tables: npt.NDArray[Any]) -> str:
    """Return the hex sha256 over header, fields, samples and allocation table, in this order."""
    content = hashlib.sha256()
    for table in tables:
        content.update(table.tobytes())
    return content.hexdigest()
