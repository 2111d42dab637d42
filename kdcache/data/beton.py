"""The beton file: written here, checked here before FFCV opens it.

FFCV's own writer waits for ever when an image fails or a worker dies, leaks shared memory, and
writes other bytes each time (worker processes race for pages). The format is small, so kdcache
writes it itself, from one process in sample order: FFCV's types, the same bytes every time. A
fully packed beton is an ordinary one: the fields `image`, `label` and `sample_id`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kdcache.data import ffcv_format
from kdcache.data.stored_image import StoredImage
from kdcache.errors import CacheCorruptError, DatasetError
from kdcache.files import read_json, replace_atomically

FORMAT_VERSION = 1
"""Of the manifest; the beton format itself is FFCV's version 2."""

LARGEST_SMALL_SIZE = 64
"""Images whose sides are at most this many pixels are stored raw, seen whole in the clean view, and
get models with a stem that does not shrink them."""

_PACK_OPTIONS = (
    *("val_source", "label_key", "write_mode", "max_resolution", "val_fraction"),
    *("on_bad_image", "seed"),
)
"""What the manifest tells of the command that made a beton."""

_LATER_FIELDS = {"skipped"}
"""Of the manifest, which the first ones of this version lack."""

PAGE_SIZE_BYTES = 8 << 20
"""FFCV's default page."""


@dataclass(frozen=True)
class BetonManifest:
    """What a beton holds and what it was made from; `SPLIT.json` beside `SPLIT.beton`."""

    format_version: int
    split: str
    samples: int
    classes: int
    class_names: list[str]
    image_size: int
    """Height and width of the images a model sees, unless told otherwise."""
    policy: str
    """View policy of the data set, unless told otherwise."""
    mean: list[float]
    """(3,) of the training split's pixels, in [0, 1]."""
    std: list[float]
    """(3,) likewise."""
    write_mode: Literal["raw", "jpg"]
    fingerprint: str
    """sha256 over class names, sample ids, labels and the digest of every stored image."""
    beton_bytes: int
    made_from: dict[str, Any]
    """The source's identity and the pack options; of a packed subset, the full data's fingerprint
    as `parent`."""
    skipped: list[dict[str, Any]] = field(default_factory=list)
    """Images of the source that could not be decoded: `position` in its split, `name`, `reason`."""

    @property
    def is_subset(self) -> bool:
        """Whether it holds some samples of another beton."""
        return "parent" in self.made_from

    @property
    def data_fingerprint(self) -> str:
        """Of the full data, whose sample ids these are: what stores and subsets are made from."""
        parent: str = self.made_from.get("parent", self.fingerprint)
        return parent

    @classmethod
    def load(cls, beton: Path) -> BetonManifest:
        """Read the manifest of a beton.

        Raises:
            DatasetError: if there is none, it is damaged, or another version of kdcache wrote it.
        """
        path = manifest_path(beton)
        if not path.exists():
            raise DatasetError(
                f"{path} is missing, expected the manifest of {beton.name}. {pack_again(beton)}"
            )
        try:
            content = read_json(path)
        except CacheCorruptError as error:
            raise DatasetError(f"{error}. {pack_again(beton)}") from error
        if content.get("format_version") != FORMAT_VERSION:
            raise DatasetError(
                f"format_version of {path} is {content.get('format_version')}, expected "
                f"{FORMAT_VERSION}. {pack_again(beton)}"
            )
        known = {field.name for field in fields(cls)}
        needed = known - _LATER_FIELDS
        if odd := (needed - content.keys()) | (content.keys() - known):
            raise DatasetError(
                f"{path} has missing or unknown fields: {', '.join(sorted(odd))}. "
                f"{pack_again(beton)}"
            )
        return cls(**content)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON content."""
        return asdict(self)


def pack_again(beton: Path, manifest: BetonManifest | None = None) -> str:
    """Return the remedy that packs a beton anew, with the command that made it.

    Args:
        beton: its path; one beside a subset file was packed from that.
        manifest: of the beton, where it can be read.
    """
    subset = beton.with_suffix(".npz")
    if subset.exists() or (manifest and manifest.is_subset):
        return f"Run: kdcache pack --subset {shlex.quote(str(subset))} --overwrite"
    if manifest is None:
        return "Run: kdcache pack SOURCE --overwrite"
    made_from = manifest.made_from
    options = "".join(
        f" --{name.replace('_', '-')} {shlex.quote(str(made_from[name]))}"
        for name in _PACK_OPTIONS
        if made_from.get(name) is not None
    )
    source = shlex.quote(str(made_from.get("path", made_from.get("kind", "SOURCE"))))
    return f"Run: kdcache pack {source}{options} --overwrite"


def manifest_path(beton: Path) -> Path:
    """Return the path of a beton's manifest."""
    return beton.with_suffix(".json")


def digests_path(beton: Path) -> Path:
    """Return the path of a beton's (N, 16) uint8 array of image digests."""
    return beton.with_suffix(".digests.npy")


def load_digests(beton: Path) -> npt.NDArray[np.uint8]:
    """Return the digest of every stored image of a beton, (N, 16).

    Raises:
        DatasetError: if their file is missing or damaged.
    """
    path = digests_path(beton)
    try:
        digests: npt.NDArray[np.uint8] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(
            f"{path} cannot be read ({error}), expected the digests of {beton.name}'s images. "
            f"{pack_again(beton)}"
        ) from error
    return digests


def save_digests(beton: Path, digests: npt.NDArray[np.uint8]) -> None:
    """Write the digest of every stored image of a beton, (N, 16)."""
    with replace_atomically(digests_path(beton)) as partial, partial.open("wb") as file:
        np.save(file, digests)


def fingerprint(
    class_names: list[str],
    sample_ids: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    digests: npt.NDArray[np.uint8],
) -> str:
    """Return the hex sha256 that identifies the content of a beton, whatever its file layout."""
    import hashlib

    content = hashlib.sha256(json.dumps(class_names).encode())
    for array in (sample_ids.astype("<i8"), labels.astype("<i8"), digests):
        content.update(np.ascontiguousarray(array).tobytes())
    return content.hexdigest()


def write_beton(
    path: Path,
    images: Iterable[tuple[StoredImage, int, int]],
    capacity: int,
) -> int:
    """Write a beton; it appears complete or not at all.

    Args:
        path: the file to write.
        images: image, label and sample id (its position in the full training set) of each sample,
            in the order of the ids; consumed once.
        capacity: number of samples at most.

    Returns:
        Bytes of the file.
    """
    field_records = ffcv_format.field_table()
    metadata = np.zeros(capacity, dtype=ffcv_format.SAMPLE)
    allocations = np.zeros(capacity, dtype=ffcv_format.PLACE)
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
            # FFCV finds a sample's page from its pointer: no image lies across two pages.
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
        for part in (header, field_records, metadata[:num_samples]):
            file.write(part.tobytes())
        file.seek(0, os.SEEK_END)
        return file.tell()


@dataclass(frozen=True)
class Beton:
    """A beton whose tables were found whole."""

    path: Path
    manifest: BetonManifest
    labels: npt.NDArray[np.int64]
    """(N,) by position."""
    sample_ids: npt.NDArray[np.int64]
    """(N,) by position; sorted, unique."""
    sizes: npt.NDArray[np.int32]
    """(N, 2) height and width as stored, by position."""
    pointers: npt.NDArray[np.int64]
    """(N,) first byte of each stored image."""
    lengths: npt.NDArray[np.int64]
    """(N,) bytes of each stored image."""

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.labels)

    def positions(self, sample_ids: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return the positions of sample ids, in the order asked for.

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
        """Yield some positions, the stored bytes of each image, and whether they were packed so."""
        content = np.memmap(self.path, dtype=np.uint8, mode="r")
        digests = load_digests(self.path)
        for position in positions:
            start = int(self.pointers[position])
            stored = content[start : start + int(self.lengths[position])].tobytes()
            digest = hashlib.blake2b(stored, digest_size=16).digest()
            yield position, stored, digest == digests[position].tobytes()


def open_beton(path: Path | str) -> Beton:
    """Open a packed beton and check that its tables are whole and are its manifest's.

    FFCV opens an unfinished file without a word and then allocates by what it reads there. The
    images' own bytes are not read here.

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
            f"{path} has {size:,} bytes, expected {manifest.beton_bytes:,} as its manifest says. "
            f"{remedy}"
        )
    header = np.fromfile(path, dtype=ffcv_format.HEADER, count=1)[0]
    found = (int(header["version"]), int(header["num_samples"]), int(header["num_fields"]))
    field_records = ffcv_format.field_table()
    expected = (ffcv_format.VERSION, manifest.samples, len(field_records))
    table = int(header["alloc_table_ptr"])
    if found != expected or size - table != manifest.samples * ffcv_format.PLACE.itemsize:
        raise DatasetError(
            f"{path} has a header with (version, samples, fields) {found} and its table at byte "
            f"{table:,} of {size:,}, expected {expected} and a whole table. {remedy}"
        )
    # FFCV looks field types up, and decodes names, without a check.
    stored = np.fromfile(path, ffcv_format.FIELD, count=len(field_records), offset=header.nbytes)
    if stored.tobytes() != field_records.tobytes():
        raise DatasetError(
            f"{path} describes other fields than image, label and sample_id. {remedy}"
        )
    before = header.nbytes + stored.nbytes
    metadata = np.fromfile(path, ffcv_format.SAMPLE, count=manifest.samples, offset=before)
    allocations = np.fromfile(path, ffcv_format.PLACE, offset=table)
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
            f"{manifest.fingerprint[:12]} as its manifest says. {remedy}"
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
