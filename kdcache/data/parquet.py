"""Read Hugging Face image Parquet: a column of encoded image files and a column of labels.

Images are read in small batches, whatever the size of the row groups.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdcache.data.classes import Part, read_names_file, unify
from kdcache.data.file_content import describe_content, read_head
from kdcache.data.shards import find_shards, is_pattern
from kdcache.data.source import Source, Split, files_digest
from kdcache.data.source_kind import Argument, SourceKind
from kdcache.data.tables import Columns, choose_columns, validate_labels
from kdcache.data.tar_shards import is_compressed
from kdcache.errors import DatasetError

_BATCH_BYTES = 16 << 20
"""Size of the images of a batch, on average."""

_MAX_BATCH_ROWS = 256
"""Maximum number of rows of a batch, whose images may be larger than their row group says."""

_PAGE_ROWS = 1024
"""Number of rows that writers put into a page, or a dictionary, before they look at its size."""

_PAGE_COPIES = 2.1
"""Memory of a page or dictionary as a multiple of its size, compressed bytes included; measured
with pyarrow 26."""

_BATCH_COPIES = 3
"""Copies of a batch in memory: its pages before and after decompression, and the images."""


@dataclass(frozen=True)
class ParquetSplit:
    """Shards with a column of images (struct of bytes and path) and one of labels."""

    files: list[Path]
    image: str
    """Name of the image column."""
    row_groups: list[tuple[int, int]]
    """Index of the file, and of the row group in it, for every row group in order."""
    starts: npt.NDArray[np.int64]
    """(row groups + 1,) position of a row group's first row; the last entry counts all rows."""
    labels: npt.NDArray[np.int64]

    batch_rows: int
    """Number of rows that are read at once."""
    page_bytes: int
    """Maximum size of a page or dictionary of images in bytes, which is read as a whole."""

    def reader_bytes(self, image_bytes: int) -> int:
        """Return the memory that one process holds to read images, in bytes.

        Args:
            image_bytes: mean size of an image.
        """
        batch = self.batch_rows * image_bytes
        return int(_PAGE_COPIES * self.page_bytes) + _BATCH_COPIES * batch

    def read(self, position: int) -> bytes:
        """Return the bytes field of the image struct."""
        group = int(np.searchsorted(self.starts, position, side="right")) - 1
        file, number = self.row_groups[group]
        stream = _stream(self.files[file], number, self.image, self.batch_rows)
        content = stream.image(position - int(self.starts[group]))
        if content is None:
            raise DatasetError("the row holds no image bytes")
        return content

    def name(self, position: int) -> str:
        """Return the shard and the row."""
        group = int(np.searchsorted(self.starts, position, side="right")) - 1
        file, number = self.row_groups[group]
        return f"{self.files[file]}, row {position - int(self.starts[group - number])}"


class _Stream:
    """The images of one row group, of which one batch is in memory.

    Reading onwards is fast. To go back, the row group is read from its start again.
    """

    def __init__(self, path: Path, row_group: int, image: str, batch_rows: int) -> None:
        self._path = path
        self._row_group = row_group
        self._image = image
        self._batch_rows = batch_rows
        self._batches: Iterator[Any] = iter(())
        self._batch: Any = None
        self._start = 0

    def image(self, row: int) -> bytes | None:
        """Return the encoded image in a row of the row group, or None if there is none."""
        if self._batch is None or row < self._start:
            self._batches = self._read()
            self._start, self._batch = 0, next(self._batches)
        while row >= self._start + len(self._batch):
            self._start += len(self._batch)
            self._batch = None  # so that only one batch is in memory
            self._batch = next(self._batches)
        content: bytes | None = self._batch[row - self._start].as_py()
        return content

    def _read(self) -> Iterator[Any]:
        import pyarrow.parquet as pq

        # A buffer, because the whole column of a row group would be read into memory otherwise.
        with closing(pq.ParquetFile(self._path, buffer_size=1 << 20, pre_buffer=False)) as file:
            for batch in file.iter_batches(
                batch_size=self._batch_rows,
                row_groups=[self._row_group],
                columns=[f"{self._image}.bytes"],
                use_threads=False,
            ):
                yield batch.column(0).field("bytes")


@lru_cache(maxsize=1)  # a worker only goes forwards, so one row group is enough
def _stream(path: Path, row_group: int, image: str, batch_rows: int) -> _Stream:
    return _Stream(path, row_group, image, batch_rows)


def parquet(source: str, label_key: str | None = None) -> Source:
    """Open a Parquet file, a folder of shards, or a pattern.

    A shard's name or folder decides its split; a single file is the training split.

    Args:
        source: path or pattern.
        label_key: name of the label column; None: `label`.

    Raises:
        ConfigError: if no shard is there.
        DatasetError: if a shard is damaged, or has no images and labels.
    """
    shards = find_shards(source, lambda name: name.lower().endswith(".parquet"))
    if not shards.splits:
        raise DatasetError(f"{source} holds no shards, expected *.parquet")
    opened: dict[str, ParquetSplit] = {}
    parts: dict[str, list[Part]] = {}
    policy: str | None = None
    for split, files in shards.splits.items():
        opened[split], parts[split], columns = _open_shards(files, shards.root, label_key)
        policy = policy or columns.view_policy
    unified = unify(parts)
    splits: dict[str, Split] = {
        split: replace(found, labels=np.concatenate(unified.labels[split]))
        for split, found in opened.items()
    }
    path = Path(source)
    identity = {
        "kind": "parquet",
        "path": str(path.resolve()) if path.exists() else _absolute(source),
        "content": files_digest(shards.splits),
    }
    return Source(
        splits,
        unified.class_names,
        identity,
        default_policy=policy,
        left_out=shards.left_out,
        notes=[*shards.notes, *unified.notes],
    )


def _open_shards(
    files: list[Path], root: Path, label_key: str | None
) -> tuple[ParquetSplit, list[Part], Columns]:
    """Return a split, the labels of each shard, and the columns of the first shard with rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    row_groups: list[tuple[int, int]] = []
    counts: list[int] = []
    means: list[float] = [1.0]
    pages: list[float] = [0.0]
    parts: list[Part] = []
    chosen: Columns | None = None
    for number, path in enumerate(files):
        try:
            with pq.ParquetFile(path) as file:
                if file.metadata.num_rows == 0:
                    parts.append(Part(str(path), np.zeros(0, dtype=np.int64), None))
                    continue
                columns = choose_columns(path, file.schema_arrow, label_key)
                for group in range(file.num_row_groups):
                    row_groups.append((number, group))
                    about = file.metadata.row_group(group)
                    counts.append(about.num_rows)
                    means.append(_mean_bytes(about, columns.image))
                    pages.append(means[-1] * min(about.num_rows, _PAGE_ROWS))
                column = file.read(columns=[columns.label], use_threads=False)[columns.label]
        except pa.ArrowInvalid as error:
            content = describe_content(read_head(path))
            raise DatasetError(
                f"{path} is not readable as parquet: "
                + (f"it {content}" if content else str(error))
            ) from error
        chosen = chosen or columns
        if columns.image != chosen.image:
            raise DatasetError(
                f"{path} has its images in {columns.image}, expected {chosen.image} as in "
                f"{files[0]}"
            )
        parts.append(Part(str(path), validate_labels(path, column), _names(path, root, columns)))
    if chosen is None:
        raise DatasetError(f"{files[0]} holds no rows, expected images")
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    rows = max(1, min(_MAX_BATCH_ROWS, int(_BATCH_BYTES / max(means))))
    labels = np.concatenate([part.labels for part in parts])
    split = ParquetSplit(files, chosen.image, row_groups, starts, labels, rows, int(max(pages)))
    return split, parts, chosen


def _mean_bytes(row_group: Any, image: str) -> float:
    """Return the mean size of a row group's images in bytes, before compression."""
    columns = (row_group.column(index) for index in range(row_group.num_columns))
    sizes = (
        column.total_uncompressed_size
        for column in columns
        if column.path_in_schema == f"{image}.bytes"
    )
    return float(sum(sizes) / max(row_group.num_rows, 1))


def _names(path: Path, root: Path, columns: Columns) -> list[str] | None:
    """Return the class names of a shard: its own, or those of the list beside it.

    Raises:
        DatasetError: if the two differ.
    """
    listed = read_names_file(path.parent, root)
    stated = columns.class_names
    if listed is not None and stated is not None and listed != stated:
        label = next(
            (n for n, (one, other) in enumerate(zip(listed, stated, strict=False)) if one != other),
            min(len(listed), len(stated)),
        )
        raise DatasetError(
            f"{path} and the classes.txt beside it differ from label {label} on, expected the same "
            "class names. Remove the wrong one"
        )
    return stated or listed


def _absolute(pattern: str) -> str:
    return os.path.abspath(pattern)  # noqa: PTH100  (a pattern is no Path)


def _recognises(given: Argument) -> bool:
    if is_pattern(given.text) and not given.path.exists():
        return given.text.lower().endswith(".parquet")
    if given.path.is_dir():
        has_shards = any(ending.endswith(".parquet") for ending in given.endings)
        return has_shards and not given.holds_class_folders
    name = given.text.lower()
    return given.path.is_file() and not (name.endswith((".tar", ".gz")) or is_compressed(name))


KIND = SourceKind(
    "image Parquet",
    _recognises,
    lambda given, label_key: parquet(given.text, label_key),
    has_label_key=True,
)
