"""Open a beton and check its tables before the decoder uses them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdcache.data import ffcv_format
from kdcache.data.beton_manifest import BetonManifest, fingerprint, load_digests, pack_again
from kdcache.data.ffcv_format import PAGE_SIZE_BYTES
from kdcache.errors import DatasetError


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

    def stored(self, positions: Iterable[int]) -> Iterator[tuple[int, bytes, bool]]:
        """Yield (position, stored bytes, digest matches) for each of the given positions."""
        content = np.memmap(self.path, dtype=np.uint8, mode="r")
        digests = load_digests(self.path)
        for position in positions:
            start = int(self.pointers[position])
            stored = content[start : start + int(self.lengths[position])].tobytes()
            digest = hashlib.blake2b(stored, digest_size=16).digest()
            yield position, stored, digest == digests[position].tobytes()


def open_beton(path: Path | str) -> Beton:
    """Open a packed beton and check that its tables are complete and agree with its manifest.

    FFCV opens an unfinished file without an error, and allocates memory by the sizes that it reads
    there. This function does not read the images.

    Raises:
        FileNotFoundError: if there is no such file.
        DatasetError: if the file is not a finished beton of kdcache.
    """
    path = Path(path)
    manifest = BetonManifest.load(path) if path.exists() else None
    if manifest is None:
        raise FileNotFoundError(f"{path} is missing, expected a beton made by kdcache pack")
    remedy = pack_again(path, manifest)
    size = path.stat().st_size
    if size != manifest.beton_bytes:
        raise DatasetError(
            f"{path} has {size:,} bytes, expected {manifest.beton_bytes:,} as in its manifest. "
            f"{remedy}"
        )
    header = np.fromfile(path, dtype=ffcv_format.HEADER, count=1)[0]
    found = (int(header["version"]), int(header["num_samples"]), int(header["num_fields"]))
    field_records = ffcv_format.field_table()
    expected = (ffcv_format.VERSION, manifest.samples, len(field_records))
    table = int(header["alloc_table_ptr"])
    if found != expected or size - table != manifest.samples * ffcv_format.ALLOCATION.itemsize:
        raise DatasetError(
            f"{path} has a header with (version, samples, fields) {found} and its table at byte "
            f"{table:,} of {size:,}, expected {expected} and a complete table. {remedy}"
        )
    # FFCV looks up field types and decodes names without a check.
    stored = np.fromfile(path, ffcv_format.FIELD, count=len(field_records), offset=header.nbytes)
    if stored.tobytes() != field_records.tobytes():
        raise DatasetError(
            f"{path} describes other fields than image, label and sample_id. {remedy}"
        )
    before = header.nbytes + stored.nbytes
    metadata = np.fromfile(path, ffcv_format.SAMPLE, count=manifest.samples, offset=before)
    allocations = np.fromfile(path, ffcv_format.ALLOCATION, offset=table)
    images = metadata["f0"]
    sizes = np.stack([images["height"], images["width"]], axis=1).astype(np.int32)
    pointers = images["data_ptr"].astype(np.int64)
    lengths = allocations["size"].astype(np.int64)
    is_raw = images["mode"] == ffcv_format.RAW_MODE
    whole = (
        int(header["page_size"]) == PAGE_SIZE_BYTES
        and (allocations["ptr"] == images["data_ptr"]).all()
        and (is_raw == (manifest.write_mode == "raw")).all()
        and (allocations["sample_id"] == np.arange(manifest.samples)).all()
        and (pointers + lengths <= table).all()
        and (sizes > 0).all()
        and (lengths[is_raw] == 3 * sizes[is_raw].astype(np.int64).prod(axis=1)).all()
    )
    if not whole:
        raise DatasetError(f"{path} has a table that does not fit its images. {remedy}")
    labels = metadata["f1"].astype(np.int64)
    sample_ids = metadata["f2"].astype(np.int64)
    found_content = fingerprint(manifest.class_names, sample_ids, labels, load_digests(path))
    if found_content != manifest.fingerprint:
        raise DatasetError(
            f"{path} and its digests have the fingerprint {found_content[:12]}, expected "
            f"{manifest.fingerprint[:12]} as in its manifest. {remedy}"
        )
    return Beton(
        path=path,
        manifest=manifest,
        labels=labels,
        sample_ids=sample_ids,
        sizes=sizes,
        pointers=pointers,
        lengths=lengths,
    )
