"""Read every byte of a beton once, and list the samples whose bytes have changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kdcache.data import ffcv_format
from kdcache.data.beton import Beton, open_beton
from kdcache.data.beton_manifest import names_path, pack_again
from kdcache.data.digests import digests_path
from kdcache.errors import DatasetError, shell_line
from kdcache.files import sha256_of
from kdcache.progress import progress_bar

_BLOCK_BYTES = 64 << 20
"""Maximum number of padding bytes in memory at a time."""


class BetonCheck(NamedTuple):
    """The result of reading a beton."""

    path: Path
    samples: int
    """Number of samples read."""
    damaged: list[int]
    """Sample ids with changed bytes, sorted."""
    error: str | None
    """The fault and its remedy; None for an intact beton."""


def check_beton(path: Path) -> BetonCheck:
    """Read a beton and the files beside it.

    The manifest has a seal. It holds the digests of the tables, of the file of digests and of the
    names. Each image has a digest, and all other bytes of the beton are 0. So every byte is read
    and hashed once.
    """
    try:
        beton = open_beton(path)
        _require_own_files(beton)
    except DatasetError as error:
        return BetonCheck(path, 0, [], shell_line(error))
    except FileNotFoundError as error:
        return BetonCheck(path, 0, [], f"{error}. {pack_again(path)}")
    damaged = []
    with progress_bar(total=len(beton), unit="image", description=f"verify {path.stem}") as bar:
        for position, _, is_whole in beton.stored(range(len(beton))):
            if not is_whole:
                damaged.append(int(beton.sample_ids[position]))
            bar.update()
    remedy = pack_again(path, beton.manifest)
    if damaged:
        message = (
            f"{path} has changed since it was packed: the bytes of {len(damaged):,} of "
            f"{len(beton):,} samples differ from their digest, the first are "
            f"{', '.join(map(str, damaged[:10]))}. {remedy}"
        )
        return BetonCheck(path, len(beton), damaged, message)
    for start, end in _padding(beton):
        if np.fromfile(path, dtype=np.uint8, count=end - start, offset=start).any():
            message = (
                f"{path} has changed since it was packed: its bytes {start:,} to {end:,}, between "
                f"the images, are not 0. {remedy}"
            )
            return BetonCheck(path, len(beton), [], message)
    return BetonCheck(path, len(beton), [], None)


def _require_own_files(beton: Beton) -> None:
    """Check the files beside a beton, and that the beton has the name of its split.

    Raises:
        DatasetError: if a file is missing, damaged or of another beton.
    """
    path, about = beton.path, beton.manifest
    remedy = pack_again(path, about)
    if not about.is_subset and about.split != path.stem:
        raise DatasetError(
            f"{path} holds the split {about.split}, expected {path.stem}: files have changed "
            f"places. {remedy}"
        )
    for file, digest in (
        (digests_path(path), about.digests_digest),
        (names_path(path), about.names_digest),
    ):
        if not file.exists():
            raise DatasetError(f"{file} is missing, expected a file beside {path.name}. {remedy}")
        if sha256_of(file) != digest:
            raise DatasetError(
                f"{file} differs from its digest in the manifest of {path.name}. {remedy}"
            )


def _padding(beton: Beton) -> Iterator[tuple[int, int]]:
    """Yield [start, end) of the bytes of a beton that are neither tables nor images."""
    tables = ffcv_format.HEADER.itemsize + ffcv_format.field_table().nbytes
    tables += len(beton) * ffcv_format.SAMPLE.itemsize
    end_of_images = beton.manifest.beton_bytes - len(beton) * ffcv_format.ALLOCATION.itemsize
    order = np.argsort(beton.pointers, kind="stable")
    ends = beton.pointers + beton.lengths
    starts: npt.NDArray[np.int64] = np.concatenate([[tables], ends[order]])
    stops: npt.NDArray[np.int64] = np.concatenate([beton.pointers[order], [end_of_images]])
    for index in np.flatnonzero(stops > starts):
        for start in range(int(starts[index]), int(stops[index]), _BLOCK_BYTES):
            yield start, min(start + _BLOCK_BYTES, int(stops[index]))
