"""Read Hugging Face image Parquet: a column of encoded image files and a column of labels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdcache.data.source import Source, Split, choose_splits, files_digest, group_by_split
from kdcache.data.source_kind import Argument, SourceKind
from kdcache.data.tables import Columns, choose_columns, resolve_class_names, validate_labels
from kdcache.errors import DatasetError


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

    def read(self, position: int) -> bytes:
        """Return the bytes field of the image struct."""
        group = int(np.searchsorted(self.starts, position, side="right")) - 1
        file, number = self.row_groups[group]
        content: bytes | None = _image_bytes(self.files[file], number, self.image)[
            position - int(self.starts[group])
        ].as_py()
        if content is None:
            raise DatasetError("the row holds no image bytes")
        return content

    def name(self, position: int) -> str:
        """Return the shard and the row."""
        group = int(np.searchsorted(self.starts, position, side="right")) - 1
        file, number = self.row_groups[group]
        return f"{self.files[file]}, row {position - int(self.starts[group - number])}"


@lru_cache(maxsize=2)
def _image_bytes(path: Path, row_group: int, image: str) -> Any:
    """Return the encoded images of a row group; two are cached, because workers read neighbours."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        column = file.read_row_group(row_group, columns=[image], use_threads=False)[image]
    return column.combine_chunks().field("bytes")


def parquet(root: Path, label_key: str | None = None) -> Source:
    """Open a Parquet file, or a folder of shards. A shard's name or folder decides its split.

    Args:
        root: the file or folder; a single file is the training split.
        label_key: name of the label column; None: `label`.
    """
    paths = [root]
    if root.is_dir():
        paths = sorted(file for file in root.rglob("*") if file.suffix.lower() == ".parquet")
    found = {"train": paths} if root.is_file() else group_by_split(paths, root)
    shards, ignored_splits = choose_splits(found)
    splits: dict[str, Split] = {}
    stated_names: list[str] | None = None
    policy: str | None = None
    for split, files in shards.items():
        splits[split], columns = _open_shards(files, label_key)
        stated_names = stated_names or columns.class_names
        policy = policy or columns.view_policy
    class_names = resolve_class_names(
        root, [split.labels for split in splits.values()], stated_names
    )
    identity = {
        "kind": "parquet",
        "path": str(root.resolve()),
        "content": files_digest(shards),
    }
    return Source(
        splits, class_names, identity, default_policy=policy, ignored_splits=ignored_splits
    )


def _open_shards(files: list[Path], label_key: str | None) -> tuple[ParquetSplit, Columns]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row_groups: list[tuple[int, int]] = []
    counts: list[int] = []
    labels: list[npt.NDArray[np.int64]] = []
    chosen: Columns | None = None
    for number, path in enumerate(files):
        try:
            with pq.ParquetFile(path) as file:
                columns = choose_columns(path, file.schema_arrow, label_key)
                chosen = chosen or columns
                for group in range(file.num_row_groups):
                    row_groups.append((number, group))
                    counts.append(file.metadata.row_group(group).num_rows)
                column = file.read(columns=[columns.label], use_threads=False)[columns.label]
        except pa.ArrowInvalid as error:
            raise DatasetError(f"{path} is not readable as parquet: {error}") from error
        if columns.image != chosen.image:
            raise DatasetError(
                f"{path} has its images in {columns.image}, expected {chosen.image} as in "
                f"{files[0]}"
            )
        labels.append(validate_labels(path, column))
    all_labels = np.concatenate(labels)
    if chosen is None or len(all_labels) == 0:
        raise DatasetError(f"{files[0]} holds no rows, expected images")
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return ParquetSplit(files, chosen.image, row_groups, starts, all_labels), chosen


def _recognises(given: Argument) -> bool:
    if given.path.is_dir():
        return ".parquet" in given.suffixes
    return given.path.is_file() and not given.suffixes & {".tar", ".gz"}


KIND = SourceKind(
    "image Parquet",
    _recognises,
    lambda given, label_key: parquet(given.path, label_key),
    has_label_key=True,
)
