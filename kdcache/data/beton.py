"""Open a beton and check its tables before the decoder uses them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdcache.data import ffcv_format
from kdcache.data.beton_manifest import BetonManifest, fingerprint, pack_again
from kdcache.data.digests import (
    DECODED,
    STORED,
    digest_bytes,
    digests_path,
    load_digests,
    view_keys,
)
from kdcache.data.policy import (
    CENTER_CROP_RATIO,
    DEFAULT_DECODE,
    DEFAULT_DEFINITION,
    DecodeMode,
    Filter,
    PixelDefinition,
    Policy,
)
from kdcache.errors import DatasetError, MissingFileError


@dataclass(frozen=True, repr=False, eq=False)
class Beton:
    """An open beton, whose tables were checked."""

    path: Path
    manifest: BetonManifest
    labels: npt.NDArray[np.int64]
    """(N,) class of the sample at each position, in [0, C)."""
    sample_ids: npt.NDArray[np.int64]
    """(N,) sample id at each position; sorted and unique."""
    sizes: npt.NDArray[np.int32]
    """(N, 2) height and width of the stored image, in pixels."""
    pointers: npt.NDArray[np.int64]
    """(N,) offset of the stored image in the file, in bytes."""
    lengths: npt.NDArray[np.int64]
    """(N,) size of the stored image, in bytes."""
    view_keys: npt.NDArray[np.uint64]
    """(N,) number that an image's views are drawn from: 64 bits of the digest of its decoded
    pixels."""

    def __repr__(self) -> str:
        """Return the path and the numbers of samples and classes."""
        about = self.manifest
        return f"Beton({str(self.path)!r}, samples={len(self)}, classes={about.classes})"

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.labels)

    def positions(self, sample_ids: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return the positions of sample ids, in the given order.

        Raises:
            DatasetError: if an id is not in this beton.
        """
        ids = np.asarray(sample_ids)
        if ids.ndim != 1 or (len(ids) and not np.issubdtype(ids.dtype, np.integer)):
            raise DatasetError(
                f"sample ids are {ids.dtype} of shape {ids.shape}, expected integers in one row"
            )
        found = np.minimum(np.searchsorted(self.sample_ids, ids), len(self) - 1)
        missing = ids[self.sample_ids[found] != ids]
        if len(missing):
            raise DatasetError(
                f"sample id {missing[0]} (and {len(missing) - 1:,} more) is not in {self.path}, "
                f"expected ids of its {len(self):,} samples"
            )
        return found.astype(np.int64)

    def pixels(
        self,
        sample_ids: npt.ArrayLike,
        view: int = 0,
        policy: Policy | str | None = None,
        size: int | None = None,
        *,
        seed: int = 0,
        center_crop_ratio: float = CENTER_CROP_RATIO,
        clean_filter: Filter = "bilinear",
        definition: PixelDefinition = DEFAULT_DEFINITION,
        decode: DecodeMode = DEFAULT_DECODE,
    ) -> npt.NDArray[np.uint8]:
        """Return the pixels that the reader gives to teacher and student.

        Args:
            sample_ids: (n,) in any order.
            view: view number; 0 is the clean view.
            policy: a policy, or the text of one. Default: the data set's.
            size: S, height and width in pixels. Default: the data set's.
            seed: of the views.
            center_crop_ratio: side of the clean view above 64 px, as a fraction of the resized
                image's short side, in (0, 1].
            clean_filter: filter that resizes the clean view; the policy has that of the others.
            definition: pixel definition, `pillow` or `planes`.
            decode: `full`, or `scaled`.

        Returns:
            (n, S, S, 3) uint8, RGB.

        Raises:
            DatasetError: if an id is not in this beton, or an image cannot be decoded.
            ConfigError: if a value is outside its range.
        """
        from kdcache.reader.batches import view_pixels  # loads torch and the decoder

        return view_pixels(
            self,
            policy or self.manifest.policy,
            seed,
            view,
            sample_ids,
            image_size=size,
            center_crop_ratio=center_crop_ratio,
            clean_filter=clean_filter,
            definition=definition,
            decode=decode,
        )

    def digests(self) -> npt.NDArray[np.uint8]:
        """Return the digests of the images, (N, 3, 16); see `kdcache.data.digests`."""
        return _load_digests(self.path, self.manifest)

    def stored(self, positions: Iterable[int]) -> Iterator[tuple[int, bytes, bool]]:
        """Yield (position, stored bytes, digest matches) for each of the given positions."""
        content = np.memmap(self.path, dtype=np.uint8, mode="r")
        digests = self.digests()[:, STORED]
        for position in positions:
            start = int(self.pointers[position])
            stored = content[start : start + int(self.lengths[position])].tobytes()
            yield position, stored, digest_bytes(stored) == digests[position].tobytes()


def open_beton(path: Path | str) -> Beton:
    """Open a packed beton and check that its tables are complete and agree with its manifest.

    FFCV opens an unfinished file without an error, and allocates memory by the sizes that it reads
    there. This function does not read the images.

    Raises:
        MissingFileError: if there is no such file.
        DatasetError: if the file is not a finished beton of kdcache.
    """
    path = Path(path)
    manifest = BetonManifest.load(path) if path.exists() else None
    if manifest is None:
        raise MissingFileError(f"{path} is missing, expected a beton made by kdcache pack")
    remedy = pack_again(path, manifest)
    size = path.stat().st_size
    if size != manifest.beton_bytes:
        raise DatasetError(
            f"{path} has {size:,} bytes, expected {manifest.beton_bytes:,} as in its manifest. "
            f"{remedy}"
        )
    count = manifest.samples
    tables, end = [], 0
    for kind, rows in (
        (ffcv_format.HEADER, 1),
        (ffcv_format.FIELD, len(ffcv_format.field_table())),
        (ffcv_format.SAMPLE, count),
    ):
        tables.append(np.fromfile(path, dtype=kind, count=rows, offset=end))
        end += rows * kind.itemsize
    # The allocation table is the end of the file.
    table_bytes = count * ffcv_format.ALLOCATION.itemsize
    start = max(0, size - table_bytes)
    tables.append(np.fromfile(path, dtype=ffcv_format.ALLOCATION, count=count, offset=start))
    if ffcv_format.digest_tables(*tables) != manifest.tables_digest:
        raise DatasetError(
            f"{path} has a header or tables that differ from their digest in its manifest. {remedy}"
        )
    _, _, metadata, allocations = tables
    images = metadata["f0"]
    labels = metadata["f1"].astype(np.int64)
    sample_ids = metadata["f2"].astype(np.int64)
    decoded = np.ascontiguousarray(_load_digests(path, manifest)[:, DECODED])
    found_content = fingerprint(manifest.class_names, sample_ids, labels, decoded)
    if found_content != manifest.fingerprint:
        raise DatasetError(
            f"{digests_path(path)} gives {path.name} the fingerprint {found_content[:12]}, "
            f"expected {manifest.fingerprint[:12]} as in its manifest. {remedy}"
        )
    return Beton(
        path=path.absolute(),  # it stays valid if the process changes its folder
        manifest=manifest,
        labels=labels,
        sample_ids=sample_ids,
        sizes=np.stack([images["height"], images["width"]], axis=1).astype(np.int32),
        pointers=images["data_ptr"].astype(np.int64),
        lengths=allocations["size"].astype(np.int64),
        view_keys=view_keys(decoded),
    )


def _load_digests(beton: Path, manifest: BetonManifest) -> npt.NDArray[np.uint8]:
    try:
        return load_digests(beton)
    except Exception as error:  # numpy raises almost anything on a damaged header
        raise DatasetError(
            f"{digests_path(beton)} cannot be read ({error}), expected the digests of "
            f"{beton.name}'s images. {pack_again(beton, manifest)}"
        ) from error
