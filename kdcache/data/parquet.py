"""Hugging Face image parquet: an `image` column of encoded files and a `label` column."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdcache.data.source import SPLITS, Source, Split
from kdcache.errors import DatasetError


@dataclass(frozen=True)
class ParquetSplit:
    """Shards with an `image` column (struct of bytes and path) and a `label` column."""

    files: list[Path]
    row_groups: list[tuple[int, int]]
    """(file, row group) of each group, in order."""
    starts: npt.NDArray[np.int64]
    """First position of each row group, and the end."""
    labels: npt.NDArray[np.int64]

    def read(self, position: int) -> bytes:
        """Return the bytes field of the image struct."""
        group = int(np.searchsorted(self.starts, position, side="right")) - 1
        file, number = self.row_groups[group]
        content: bytes | None = _image_bytes(self.files[file], number)[
            position - int(self.starts[group])
        ].as_py()
        if content is None:
            raise DatasetError("the row holds no image bytes")
        return content

    def name(self, position: int) -> str:
        """Return the shard and the row."""
        group = int(np.searchsorted(self.starts, position, side="right")) - 1
        file = self.row_groups[group][0]
        first = next(g for g, (f, _) in enumerate(self.row_groups) if f == file)
        return f"{self.files[file]}, row {position - int(self.starts[first])}"


@lru_cache(maxsize=2)
def _image_bytes(path: Path, row_group: int) -> Any:
    """Return one row group's encoded images; workers read neighbours, so two groups are enough."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        column = file.read_row_group(row_group, columns=["image"], use_threads=False)["image"]
    return column.combine_chunks().field("bytes")


def parquet(root: Path) -> Source:
    """Open a parquet file, or a folder of shards named after their split or in a folder of it."""
    shards: dict[str, list[Path]] = {}
    paths = [root] if root.is_file() else sorted(root.rglob("*.parquet"))
    for path in paths:
        shards.setdefault(_split_name(path, root), []).append(path)
    named = {SPLITS[name]: shards[name] for name in reversed(SPLITS) if name in shards}
    if "train" not in named:
        raise DatasetError(f"{root} holds no training shards, expected files named train*.parquet")
    splits: dict[str, Split] = {}
    stated_names: list[str] | None = None
    content = hashlib.sha256()
    for split, files in named.items():
        splits[split], split_names = _open_shards(files)
        stated_names = stated_names or split_names
        for path in files:
            stat = path.stat()
            content.update(f"{split}/{path.name}:{stat.st_size}:{stat.st_mtime_ns}\n".encode())
    top = max(int(split.labels.max()) for split in splits.values())
    class_names = stated_names or [str(label) for label in range(top + 1)]
    if top >= len(class_names):
        raise DatasetError(
            f"{root} has the label {top}, expected labels below {len(class_names)}, the number of "
            "its class names"
        )
    identity = {"kind": "parquet", "path": str(root.resolve()), "content": content.hexdigest()}
    return Source(splits, class_names, identity)


def _split_name(path: Path, root: Path) -> str:
    """Return the split that a shard's name or folder tells; a lone file is `train`."""
    if path == root:
        return "train"
    for part in (path.name, *reversed(path.relative_to(root).parts[:-1])):
        match = re.search(r"(?<![a-z0-9])(train|validation|val|test)(?![a-z])", part.lower())
        if match:
            return match[1]
    return "train"


def _open_shards(files: list[Path]) -> tuple[ParquetSplit, list[str] | None]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row_groups: list[tuple[int, int]] = []
    counts: list[int] = []
    labels: list[npt.NDArray[np.int64]] = []
    class_names: list[str] | None = None
    for number, path in enumerate(files):
        try:
            with pq.ParquetFile(path) as file:
                schema = file.schema_arrow
                _require_columns(path, schema)
                class_names = class_names or _class_names(schema)
                for group in range(file.num_row_groups):
                    row_groups.append((number, group))
                    counts.append(file.metadata.row_group(group).num_rows)
                column = file.read(columns=["label"], use_threads=False)["label"]
        except pa.ArrowInvalid as error:
            raise DatasetError(f"{path} is not readable as parquet: {error}") from error
        if column.null_count:
            raise DatasetError(
                f"{path} has {column.null_count} rows without a label, expected none"
            )
        labels.append(column.to_numpy().astype(np.int64))
    all_labels = np.concatenate(labels)
    if len(all_labels) == 0:
        raise DatasetError(f"{files[0]} holds no rows, expected images")
    if all_labels.min() < 0:
        raise DatasetError(f"{files[0]} has the label {all_labels.min()}, expected labels from 0")
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return ParquetSplit(files, row_groups, starts, all_labels), class_names


def _require_columns(path: Path, schema: Any) -> None:
    import pyarrow as pa

    names = schema.names
    image = schema.field("image").type if "image" in names else pa.null()
    is_image = pa.types.is_struct(image) and image.get_field_index("bytes") >= 0
    if not is_image or "label" not in names or not pa.types.is_integer(schema.field("label").type):
        raise DatasetError(
            f"{path} has the columns {', '.join(names)}, expected `image` (struct of bytes and "
            "path) and `label` (integer)"
        )


def _class_names(schema: Any) -> list[str] | None:
    """Return class names from Hugging Face's feature metadata, or from a `class_names` key."""
    metadata = schema.metadata or {}
    if b"class_names" in metadata:
        return str(metadata[b"class_names"].decode()).split(",")
    if b"huggingface" in metadata:
        features = json.loads(metadata[b"huggingface"]).get("info", {}).get("features", {})
        names = features.get("label", {}).get("names")
        return None if names is None else [str(name) for name in names]
    return None
