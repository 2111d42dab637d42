"""Define the digests of images, and the view key, which is a part of one of them.

Each image has three digests of 128 bits (blake2b): of the source's encoded file, of the decoded
pixels, and of the stored bytes. The first finds the image again in a source, the second identifies
what a model sees, the third finds damage. `SPLIT.digests.npy` beside a beton holds them.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdcache.files import replace_atomically

SOURCE, DECODED, STORED = range(3)
"""Index of each digest of an image."""

DIGEST_BYTES = 16


def digest_bytes(content: bytes | memoryview) -> bytes:
    """Return the digest of an encoded file or of stored bytes."""
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


def digest_pixels(height: int, width: int, rgb: bytes) -> bytes:
    """Return the digest of decoded pixels.

    Args:
        height: in pixels.
        width: in pixels.
        rgb: (height, width, 3) uint8 as bytes, as the reader decodes the stored image at full size.
    """
    found = hashlib.blake2b(struct.pack("<II", height, width), digest_size=DIGEST_BYTES)
    found.update(rgb)
    return found.digest()


def view_keys(decoded: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Return the view keys of images: the first 8 bytes of the digest of the decoded pixels.

    A view is drawn from (seed, view, view key). So an image has the same views in any order and
    packing of a data set, and copies of one image share theirs.

    Args:
        decoded: (N, 16) digests of the decoded pixels.

    Returns:
        (N,) uint64, the bytes read as little-endian numbers.
    """
    start = np.ascontiguousarray(decoded[:, :8])
    keys: npt.NDArray[np.uint64] = start.view("<u8").reshape(-1).astype(np.uint64)
    return keys


def digests_path(beton: Path) -> Path:
    """Return the path of a beton's (N, 3, 16) uint8 array of digests."""
    return beton.with_suffix(".digests.npy")


def save_digests(beton: Path, digests: npt.NDArray[np.uint8]) -> None:
    """Write the digests of a beton's images, (N, 3, 16)."""
    with replace_atomically(digests_path(beton)) as partial, partial.open("wb") as file:
        np.save(file, digests)


def load_digests(beton: Path) -> npt.NDArray[np.uint8]:
    """Return the digests of a beton's images, (N, 3, 16), mapped from the file.

    Raises:
        Exception: if the file is missing or damaged; numpy raises almost anything.
    """
    digests: npt.NDArray[np.uint8] = np.load(digests_path(beton), mmap_mode="r", allow_pickle=False)
    if digests.dtype != np.uint8 or digests.shape[1:] != (3, DIGEST_BYTES):
        raise ValueError(f"it holds {digests.dtype} of shape {digests.shape}")
    return digests
