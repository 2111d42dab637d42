"""`kdcache export`: write one view of a store as parquet or npz, for programs without zarr."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from kdcache.data.sample_names import sample_names_if_packed
from kdcache.errors import ConfigError
from kdcache.files import replace_atomically
from kdcache.options import ExportOptions
from kdcache.results import Result
from kdcache.store.logit_store import LogitStore
from kdcache.workspace import Workspace

ROWS_PER_GROUP = 4096
"""Rows of a row group of the parquet file, which are in memory at a time."""


@dataclass(frozen=True, kw_only=True)
class ExportResult(Result):
    """The file that `export` wrote."""

    rows: int
    classes: int
    bytes: int
    path: Path


def export(options: ExportOptions) -> ExportResult:
    """Write sample ids, labels, decoded logits and scores of one view.

    A parquet file has one row per sample, with the columns `sample_id`, `file` (the image's name in
    its source, if it is packed in the workspace), `label`, `logits` (C float32) and one for each
    score and statistic; its metadata `kdcache` is the manifest. An npz file has arrays of these
    names, and `manifest`, a JSON string; its logits must fit into memory.

    Raises:
        ConfigError: if the output file exists and `overwrite` is not set.
        CacheMismatchError: if the store has no such view.
    """
    workspace = Workspace(Path(options.workspace))
    store = LogitStore.open(workspace.require_store(None, options.store))
    out = Path(options.out)
    if out.exists() and not options.overwrite:
        raise ConfigError(f"{out} exists. Use --overwrite to replace it")
    ids = store.sample_ids if options.view else np.arange(store.manifest.samples)
    store.logits(ids[:1], options.view)  # refuse a missing view before a file is created
    per_sample = {**store.scores, **store.stats}
    columns = {name: values[ids] for name, values in per_sample.items()}
    names = sample_names_if_packed(workspace, store.manifest.data_fingerprint)
    if names is not None:
        columns = {"file": np.array(names)[ids], **columns}
    with replace_atomically(out) as partial:
        write = _write_parquet if out.suffix == ".parquet" else _write_npz
        write(partial, store, options.view, ids, columns)
    return ExportResult(
        rows=len(ids),
        classes=store.manifest.classes,
        bytes=out.stat().st_size,
        path=out.resolve(),
    )


def _manifest_json(store: LogitStore, view: int) -> str:
    return json.dumps(store.manifest.to_json() | {"view": view})


def _write_parquet(
    path: Path,
    store: LogitStore,
    view: int,
    ids: npt.NDArray[np.int64],
    columns: dict[str, npt.NDArray[Any]],
) -> None:
    classes = store.manifest.classes
    schema = pa.schema(
        [
            ("sample_id", pa.int64()),
            ("label", pa.int64()),
            ("logits", pa.list_(pa.float32(), classes)),
            *(
                (
                    name,
                    pa.string() if values.dtype.kind == "U" else pa.from_numpy_dtype(values.dtype),
                )
                for name, values in columns.items()
            ),
        ],
        metadata={"kdcache": _manifest_json(store, view)},
    )
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(ids), ROWS_PER_GROUP):
            part = slice(start, start + ROWS_PER_GROUP)
            logits = store.logits(ids[part], view)
            arrays = [
                pa.array(ids[part]),
                pa.array(store.labels[ids[part]]),
                pa.FixedSizeListArray.from_arrays(pa.array(logits.ravel()), classes),
                *(pa.array(values[part]) for values in columns.values()),
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _write_npz(
    path: Path,
    store: LogitStore,
    view: int,
    ids: npt.NDArray[np.int64],
    columns: dict[str, npt.NDArray[Any]],
) -> None:
    arrays: dict[str, npt.NDArray[Any]] = {
        "sample_id": ids,
        "label": store.labels[ids],
        "logits": store.logits(ids, view),
        "manifest": np.array(_manifest_json(store, view)),
        **columns,
    }
    # Not np.savez, which takes no array named `file`.
    with zipfile.ZipFile(path, "w") as archive:
        for name, values in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, values, allow_pickle=False)
