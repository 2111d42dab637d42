"""Define the bytes of a shard file: a record of what it is, the values, and Zarr's index.

    offset 0     identity record, 512 bytes: JSON, spaces, and the CRC-32C of both
    offset 512   the values of one inner chunk, and their CRC-32C
    at the end   index of Zarr's codec `sharding_indexed`: offset and length of the chunk, CRC-32C

Zarr finds the chunk through the index and never looks at the record, so any Zarr library reads the
array. Everything except the values follows from the identity and the size, so a reader compares
those bytes with the expected ones.
"""

from __future__ import annotations

import json
import struct
from typing import NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt

RECORD_BYTES = 512

CHECKSUM_BYTES = 4
"""Size of a CRC-32C."""

_INDEX = struct.Struct("<QQ")
"""Offset and length of the only inner chunk."""

OVERHEAD_BYTES = RECORD_BYTES + CHECKSUM_BYTES + _INDEX.size + CHECKSUM_BYTES
"""Bytes of a shard file beside its values."""


class ShardIdentity(NamedTuple):
    """Where a shard belongs; written in its own file."""

    store: str
    """Identity of the values; see `StoreManifest.id_of`."""
    array: str
    """Name of the array, such as `views/3/rows`."""
    block: int
    """Index of the shard in its array."""
    first: int
    """First row of the array in this shard."""
    end: int
    """First row after this shard."""
    codec: str
    """Codec of encoded rows: a name, or the digest of the codec file; "" for other arrays."""

    def record(self) -> bytes:
        """Return the first `RECORD_BYTES` of the file.

        Raises:
            ValueError: if the identity is too long.
        """
        text = json.dumps({"kdcache_shard": 1, **self._asdict()}).encode()
        room = RECORD_BYTES - CHECKSUM_BYTES
        if len(text) > room:
            raise ValueError(f"the identity of {self.array} takes {len(text)} bytes of {room}")
        text = text.ljust(room)
        return text + _checksum(text)


def assemble(
    identity: ShardIdentity, values: npt.NDArray[np.generic], chunk_rows: int
) -> npt.NDArray[np.uint8]:
    """Return the bytes of a shard file, (n,).

    Args:
        identity: where the shard belongs.
        values: (n, ...) with n at most `chunk_rows`; the rest of the chunk is filled with zeros.
        chunk_rows: rows of a full shard.
    """
    shape = (chunk_rows, *values.shape[1:])
    kind = values.dtype.newbyteorder("<")
    chunk_bytes = int(np.prod(shape)) * kind.itemsize
    content = np.empty(chunk_bytes + OVERHEAD_BYTES, dtype=np.uint8)
    content[:RECORD_BYTES] = np.frombuffer(identity.record(), dtype=np.uint8)
    end = RECORD_BYTES + chunk_bytes
    chunk = content[RECORD_BYTES:end].view(kind).reshape(shape)
    chunk[: len(values)] = values
    chunk[len(values) :] = 0
    rest = _checksum(content[RECORD_BYTES:end]) + _index(chunk_bytes)
    content[end:] = np.frombuffer(rest, dtype=np.uint8)
    return content


def problem_of_record(identity: ShardIdentity, record: bytes) -> str | None:
    """Return why the first bytes of a file are not the record of this shard; None if they are."""
    if record == identity.record():
        return None
    text, checksum = record[:-CHECKSUM_BYTES], record[-CHECKSUM_BYTES:]
    if len(record) != RECORD_BYTES or _checksum(text) != checksum:
        return "has no readable identity: it was damaged"
    found = json.loads(text)
    differ = "; ".join(
        f"{name} is {found.get(name)!r}, expected {value!r}"
        for name, value in identity._asdict().items()
        if found.get(name) != value
    )
    return f"belongs elsewhere: {differ}"


def problem_of(
    identity: ShardIdentity, content: npt.NDArray[np.uint8], chunk_bytes: int
) -> str | None:
    """Return what is wrong with a shard file; None if it is whole and belongs here.

    Args:
        identity: where the file lies.
        content: the bytes of the file, (n,).
        chunk_bytes: size of the values of a full shard.
    """
    if problem := problem_of_record(identity, content[:RECORD_BYTES].tobytes()):
        return problem
    if len(content) != chunk_bytes + OVERHEAD_BYTES:
        return f"has {len(content):,} bytes, expected {chunk_bytes + OVERHEAD_BYTES:,}"
    end = RECORD_BYTES + chunk_bytes
    checksum = content[end : end + CHECKSUM_BYTES].tobytes()
    if checksum != _checksum(content[RECORD_BYTES:end]):
        return "holds bytes that differ from their checksum"
    if content[end + CHECKSUM_BYTES :].tobytes() != _index(chunk_bytes):
        return "has a damaged index"
    return None


def values_of(
    content: npt.NDArray[np.uint8], dtype: np.dtype[np.generic], shape: tuple[int, ...]
) -> npt.NDArray[np.generic]:
    """Return the values of a whole shard file, of the shape of a full shard, without a copy."""
    chunk = content[RECORD_BYTES : len(content) - (OVERHEAD_BYTES - RECORD_BYTES)]
    return chunk.view(dtype.newbyteorder("<")).reshape(shape)


def _index(chunk_bytes: int) -> bytes:
    index = _INDEX.pack(RECORD_BYTES, chunk_bytes + CHECKSUM_BYTES)
    return index + _checksum(index)


def _checksum(content: bytes | npt.NDArray[np.uint8]) -> bytes:
    return struct.pack("<I", google_crc32c.value(content))
