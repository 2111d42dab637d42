"""Read every stored image of a beton and list the samples whose bytes have changed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from kdcache.data.beton import open_beton
from kdcache.data.beton_manifest import pack_again
from kdcache.data.images import without_pillows_limit
from kdcache.errors import DatasetError, shell_line
from kdcache.progress import progress_bar


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
    """Compare every stored image with its digest, and the tables with the manifest."""
    try:
        beton = open_beton(path)
    except DatasetError as error:
        return BetonCheck(path, 0, [], shell_line(error))
    damaged = []
    with progress_bar(total=len(beton), unit="image", description=f"verify {path.stem}") as bar:
        for position, content, is_whole in beton.stored(range(len(beton))):
            height, width = beton.sizes[position].tolist()
            if not is_whole or not _has_size(content, height, width):
                damaged.append(int(beton.sample_ids[position]))
            bar.update()
    if not damaged:
        return BetonCheck(path, len(beton), [], None)
    message = (
        f"{path} has changed since it was packed: the bytes of {len(damaged):,} of {len(beton):,} "
        f"samples differ from their digest, the first are {', '.join(map(str, damaged[:10]))}. "
        f"{pack_again(path, beton.manifest)}"
    )
    return BetonCheck(path, len(beton), damaged, message)


def _has_size(content: bytes, height: int, width: int) -> bool:
    """Return whether a stored image, raw RGB or JPEG, has the size that is in the table."""
    if len(content) == 3 * height * width:
        return True
    try:
        with (
            without_pillows_limit(),
            Image.open(io.BytesIO(content), formats=["JPEG"]) as image,
        ):
            return bool(image.size == (width, height))
    except (UnidentifiedImageError, OSError):
        return False
