"""Write a beton from one process, in the order of the samples, so that its bytes never vary.

FFCV's own writer hangs when an image fails or a worker dies, leaks shared memory, and writes other
bytes each time (its worker processes race for pages). The format is small, so kdcache writes it
itself. FFCV can read the file; its fields are `image`, `label` and `sample_id`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kdcache.data import ffcv_format
from kdcache.data.ffcv_format import PAGE_SIZE_BYTES, digest_tables
from kdcache.data.stored_image import StoredImage
from kdcache.errors import DatasetError
from kdcache.files import replace_atomically


class WrittenBeton(NamedTuple):
    """What the manifest records of a beton file."""

    bytes: int
    """Size of the file."""
    tables_digest: str
    """See `kdcache.data.ffcv_format.digest_tables`."""


def write_beton(
    path: Path,
    images: Iterable[tuple[StoredImage, int, int]],
    capacity: int,
) -> WrittenBeton:
    """Write a beton; it appears complete or not at all.

    Args:
        path: path of the new file.
        images: (image, label, sample id) per sample, sorted by sample id (index into the full
            training set); iterated once.
        capacity: maximum number of samples.

    Raises:
        DatasetError: if an image is larger than a page.
    """
    field_records = ffcv_format.field_table()
    metadata = np.zeros(capacity, dtype=ffcv_format.SAMPLE)
    allocations = np.zeros(capacity, dtype=ffcv_format.ALLOCATION)
    header = np.zeros(1, dtype=ffcv_format.HEADER)
    header["version"] = ffcv_format.VERSION
    header["num_fields"] = len(field_records)
    header["page_size"] = PAGE_SIZE_BYTES

    before_data = header.nbytes + field_records.nbytes + metadata.nbytes
    pointer = -(-before_data // PAGE_SIZE_BYTES) * PAGE_SIZE_BYTES
    with replace_atomically(path) as partial, partial.open("wb") as file:
        num_samples = 0
        for position, (image, label, sample_id) in enumerate(images):
            size = len(image.content)
            if size > PAGE_SIZE_BYTES:
                raise DatasetError(
                    f"sample {sample_id} takes {size:,} bytes, expected at most "
                    f"{PAGE_SIZE_BYTES:,}. Shrink images with --max-resolution"
                )
            # FFCV derives a sample's page from its pointer: no image may span two pages.
            if pointer % PAGE_SIZE_BYTES + size > PAGE_SIZE_BYTES:
                pointer = -(-pointer // PAGE_SIZE_BYTES) * PAGE_SIZE_BYTES
            file.seek(pointer)
            file.write(image.content)
            stored = metadata["f0"][position : position + 1]
            stored["mode"] = ffcv_format.JPEG_MODE if image.is_jpeg else ffcv_format.RAW_MODE
            stored["height"], stored["width"] = image.height, image.width
            stored["data_ptr"] = pointer
            metadata["f1"][position], metadata["f2"][position] = label, sample_id
            allocations[position] = (position, pointer, size)
            pointer += size
            num_samples = position + 1
        header["num_samples"] = num_samples
        header["alloc_table_ptr"] = -(-pointer // PAGE_SIZE_BYTES) * PAGE_SIZE_BYTES
        file.seek(int(header["alloc_table_ptr"][0]))
        file.write(allocations[:num_samples].tobytes())
        file.seek(0)
        tables = (header, field_records, metadata[:num_samples])
        for part in tables:
            file.write(part.tobytes())
        file.seek(0, os.SEEK_END)
        return WrittenBeton(file.tell(), digest_tables(*tables, allocations[:num_samples]))
