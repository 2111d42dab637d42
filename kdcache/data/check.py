"""Reading every stored image of a beton, and naming the samples that are not what was packed."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from kdcache.data.beton import BetonManifest, digests_path, open_beton
from kdcache.errors import DatasetError
from kdcache.progress import progress_bar


class BetonCheck(NamedTuple):
    """What reading a beton found."""

    path: Path
    samples: int
    """Read."""
    damaged: list[int]
    """Sample ids, sorted."""
    error: str | None
    """What is wrong and what to do; None if nothing is."""


def check_beton(path: Path) -> BetonCheck:
    """Compare every stored image with its digest, and the tables with the manifest."""
    try:
        beton = open_beton(path)
    except DatasetError as error:
        return BetonCheck(path, 0, [], str(error))
    digests = np.load(digests_path(path), allow_pickle=False)
    data = np.memmap(path, dtype=np.uint8, mode="r")
    damaged = []
    with progress_bar(total=len(beton), unit="image", description=f"verify {path.stem}") as bar:
        for position in range(len(beton)):
            start = int(beton.pointers[position])
            content = data[start : start + int(beton.lengths[position])].tobytes()
            digest = hashlib.blake2b(content, digest_size=16).digest()
            height, width = beton.sizes[position].tolist()
            if digest != digests[position].tobytes() or not _has_size(content, height, width):
                damaged.append(int(beton.sample_ids[position]))
            bar.update()
    if not damaged:
        return BetonCheck(path, len(beton), [], None)
    remedy = pack_again(beton.manifest)
    message = (
        f"{path} holds other bytes than were packed for {len(damaged):,} of {len(beton):,} "
        f"samples, the first are {', '.join(map(str, damaged[:10]))}. {remedy}"
    )
    return BetonCheck(path, len(beton), damaged, message)


def pack_again(manifest: BetonManifest) -> str:
    """Return the remedy that packs a beton anew, with the command that made it."""
    if manifest.is_subset:
        return "Run: kdcache pack --subset NAME --overwrite"
    made_from = manifest.made_from
    options = "".join(
        f" --{name.replace('_', '-')} {made_from[name]}"
        for name in ("write_mode", "max_resolution", "val_fraction", "seed")
        if made_from.get(name) is not None
    )
    return f"Run: kdcache pack {made_from.get('path', made_from['kind'])}{options} --overwrite"


def _has_size(content: bytes, height: int, width: int) -> bool:
    """Return whether a stored image, raw RGB or JPEG, has the size that the table says."""
    if len(content) == 3 * height * width:
        return True
    try:
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
            return bool(image.size == (width, height))
    except (UnidentifiedImageError, OSError):
        return False
