"""Write a beton with some samples of another one. Stored bytes are copied, not decoded.

Pruning alone does not make reading cheaper, because the kept samples are spread over all pages of
the file. Sample ids do not change, so stores and subsets of the full data stay valid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdcache.data.beton import Beton, open_beton
from kdcache.data.beton_manifest import (
    BetonManifest,
    fingerprint,
    manifest_path,
    names_path,
    pack_again,
)
from kdcache.data.beton_writer import write_beton
from kdcache.data.digests import DECODED, digests_path, save_digests
from kdcache.data.names import load_names, save_names
from kdcache.data.stored_image import StoredImage
from kdcache.errors import CacheMismatchError, ConfigError, DatasetError
from kdcache.files import sha256_of
from kdcache.progress import logger, progress_bar
from kdcache.selection.subset import Subset
from kdcache.workspace import Workspace


def subset_beton(subset: Path) -> Path:
    """Return the path of the beton of a subset file, which lies beside it."""
    return subset.with_suffix(".beton")


def pack_subset(workspace: Workspace, name: str, *, overwrite: bool) -> Path:
    """Write the beton of a subset beside the subset file, unless it exists.

    Args:
        workspace: workspace with the beton of all data.
        name: name of a subset in the workspace, or path of a subset file.
        overwrite: replace an existing beton of other samples.

    Returns:
        The path of the beton.

    Raises:
        ConfigError: if there is no such subset, or `name` is `full`.
        DatasetError: if stored bytes differ from their digest.
        CacheMismatchError: if the subset, or an existing beton, belongs to other data or samples.
    """
    subset_path = workspace.require_subset(name)
    if subset_path is None:
        raise ConfigError(
            parameter="subset",
            value="full",
            rule="a subset of the data",
            remedy="All of it is packed already",
        )
    full = open_beton(workspace.require_beton())
    subset = Subset.load_of(subset_path, full.manifest.fingerprint)
    path = subset_beton(subset_path)
    if overwrite or not manifest_path(path).exists():
        repack(full, subset.sample_ids, path)
        return path
    packed = open_beton(path)
    require_same_samples(packed, subset_path, subset.sample_ids)
    found, wanted = packed.manifest.data_fingerprint, full.manifest.fingerprint
    if found != wanted:
        raise CacheMismatchError(
            f"{path} was packed from other data: parent is {found[:12]}, expected {wanted[:12]} "
            f"of {full.path}. Use --overwrite to replace it"
        )
    logger.info("up to date: %s", path)
    return path


def repack(full: Beton, sample_ids: npt.NDArray[np.int64], path: Path) -> BetonManifest:
    """Write a beton with the given samples; its manifest is written last.

    Args:
        full: the beton of all data.
        sample_ids: (n,) sorted and unique.
        path: the file to write; manifest, digests and names are named after it.

    Raises:
        DatasetError: if an id is not in the beton, or stored bytes differ from their digest.
    """
    positions = full.positions(sample_ids)
    labels = full.labels[positions]
    digests = full.digests()[positions]
    names = load_names(full.path, full.manifest)
    manifest_path(path).unlink(missing_ok=True)
    written = write_beton(path, _stored(full, positions), len(positions))
    save_digests(path, digests)
    save_names(path, sample_ids, [names[position] for position in positions])
    # Everything that decides a pixel or its normalisation is as in the full data.
    manifest = replace(
        full.manifest,
        samples=len(positions),
        fingerprint=fingerprint(full.manifest.class_names, sample_ids, labels, digests[:, DECODED]),
        beton_bytes=written.bytes,
        tables_digest=written.tables_digest,
        digests_digest=sha256_of(digests_path(path)),
        names_digest=sha256_of(names_path(path)),
        made_from={"kind": "subset", "parent": full.manifest.fingerprint},
    )
    manifest.save(path)
    return manifest


def require_same_samples(packed: Beton, subset: Path, sample_ids: npt.NDArray[np.int64]) -> None:
    """Compare a packed subset with the subset file beside it.

    Args:
        packed: beton of the subset.
        subset: path of the subset file.
        sample_ids: (n,) sample ids of the subset file.

    Raises:
        CacheMismatchError: if the samples differ.
    """
    if not np.array_equal(packed.sample_ids, sample_ids):
        other = np.setxor1d(packed.sample_ids, sample_ids)
        raise CacheMismatchError(
            f"{packed.path} holds {len(packed):,} samples, expected the {len(sample_ids):,} of "
            f"{subset}; {len(other):,} are in only one of them, the first is {other[0]}. "
            f"{pack_again(packed.path, packed.manifest)}"
        )


def _stored(
    full: Beton, positions: npt.NDArray[np.int64]
) -> Iterator[tuple[StoredImage, int, int]]:
    no_digests = np.zeros((3, 16), dtype=np.uint8)  # copied from the full data
    no_sums = np.zeros((3, 2), dtype=np.int64)  # mean and std are copied from the full data
    with progress_bar(total=len(positions), unit="image", description="pack subset") as bar:
        for position, content, is_whole in full.stored(positions.tolist()):
            if not is_whole:
                raise DatasetError(
                    f"the bytes of sample {full.sample_ids[position]} in {full.path} differ from "
                    "their digest, expected what was packed. "
                    f"{pack_again(full.path, full.manifest)}"
                )
            height, width = full.sizes[position].tolist()
            image = StoredImage(
                content=content,
                is_jpeg=full.manifest.write_mode == "jpg",
                height=height,
                width=width,
                digests=no_digests,
                channel_sums=no_sums,
            )
            yield image, int(full.labels[position]), int(full.sample_ids[position])
            bar.update()
