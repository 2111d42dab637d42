"""Read and write score files: `.npy` by sample id, `.csv` and `.parquet` by id or file name.

A file must have one score per sample. Published code also writes other arrays, which are refused:
a permutation of the samples, a mask of the kept samples, and sorted scores, which are no longer in
the order of the samples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from kdcache.errors import CacheMismatchError, ConfigError
from kdcache.files import replace_atomically
from kdcache.options import SCORE_FILES, require_suffix
from kdcache.selection.ranking import native_numbers

_METADATA_KEY = b"kdcache"
_MAX_ITEM_BYTES = 8
"""Maximum size of one number in a `.npy` file."""
_MIN_SORTED = 10
"""Sorted values are an error from this many on: ten random values are sorted, up or down, with
probability 2 / 10!."""


def read_scores(
    path: Path,
    num_samples: int,
    *,
    data_fingerprint: str,
    sample_names: Callable[[], Sequence[str]],
) -> npt.NDArray[Any]:
    """Return the scores of a file, (N,) by sample id: float32, float64, int64 or uint64.

    Args:
        path: a `.npy` file with (N,) numbers by sample id; or a `.csv` or `.parquet` file with a
            column `score` and `sample_id` or `file` or both, in any order. Other columns are
            ignored.
        num_samples: number of samples N.
        data_fingerprint: fingerprint of the data; it is compared if the file records one.
        sample_names: returns the image path of every sample, by sample id; called if there is a
            column `file`, whose names may be the last parts of such a path.

    Raises:
        ConfigError: if the file has another format, a sample does not have exactly one score, or
            the values are not scores.
        CacheMismatchError: if the file records other data.
    """
    require_suffix("scores", path, SCORE_FILES)
    if path.suffix == ".npy":
        return _read_npy(path, num_samples)
    table = _read_table(path, data_fingerprint)
    keys = [name for name in ("sample_id", "file") if name in table.column_names]
    if "score" not in table.column_names or not keys:
        raise ConfigError(
            f"{path} has the columns {', '.join(table.column_names)}, expected `score` and at "
            "least one of `sample_id` and `file`"
        )
    values = _numbers(path, table, "score")
    if "sample_id" in keys:
        ids = _numbers(path, table, "sample_id")
        if not np.issubdtype(ids.dtype, np.integer):
            raise ConfigError(f"sample_id in {path} is {ids.dtype}, expected integers without gaps")
        _require_ids_of_data(path, ids, num_samples)
        if "file" in keys:
            _require_same_names(path, ids, table["file"].to_pylist(), sample_names())
    else:
        ids = _ids_of_names(path, table["file"].to_pylist(), sample_names())
    return _by_sample_id(path, ids, values, num_samples)


def write_scores(
    path: Path,
    scores: npt.NDArray[Any],
    labels: npt.NDArray[np.int64],
    kept_ids: npt.NDArray[np.int64],
    *,
    data_fingerprint: str,
    names: Sequence[str] | None,
) -> None:
    """Write every sample's score atomically, in a format that `read_scores` reads.

    Args:
        path: a `.npy` file gets the scores only; a `.csv` or `.parquet` file gets the columns
            `sample_id`, `file`, `label`, `score` and `kept`.
        scores: (N,) by sample id.
        labels: (N,) by sample id.
        kept_ids: sample ids of a subset, for the column `kept`.
        data_fingerprint: written to the metadata of a `.parquet` file.
        names: (N,) name of each image in its source; None leaves the column `file` out.
    """
    require_suffix("export", path, SCORE_FILES)
    with replace_atomically(path) as partial:
        if path.suffix == ".npy":
            with partial.open("wb") as file:
                np.save(file, scores)
            return
        import pyarrow as pa

        kept = np.zeros(len(scores), dtype=bool)
        kept[kept_ids] = True
        columns: dict[str, Any] = {"sample_id": np.arange(len(scores))}
        columns |= {} if names is None else {"file": pa.array(names, pa.string())}
        table = pa.table({**columns, "label": labels, "score": scores, "kept": kept})
        if path.suffix == ".csv":
            from pyarrow import csv

            csv.write_csv(table, partial)
        else:
            from pyarrow import parquet

            about = json.dumps({"data_fingerprint": data_fingerprint})
            parquet.write_table(
                table.replace_schema_metadata({_METADATA_KEY: about.encode()}), partial
            )


def _read_npy(path: Path, num_samples: int) -> npt.NDArray[Any]:
    try:
        scores = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ConfigError(
            f"{path} is not an array of numbers ({error}), expected scores"
        ) from error
    remedy = "Give one score per sample, in the order of the sample ids, or a .csv with `sample_id`"
    if not isinstance(scores, np.ndarray) or scores.shape != (num_samples,):
        raise ConfigError(
            f"{path} has shape {getattr(scores, 'shape', 'several arrays')}, expected "
            f"({num_samples},). {remedy}"
        )
    if scores.dtype.kind not in "fiu" or scores.dtype.itemsize > _MAX_ITEM_BYTES:
        raise ConfigError(
            f"{path} holds {scores.dtype}, expected numbers of at most 64 bits. {remedy}"
        )
    scores = native_numbers(scores)
    if scores.dtype.kind != "f" and _is_permutation(scores):
        raise ConfigError(
            f"{path} holds every number from 0 to {num_samples - 1:,} once, which is an order of "
            f"the samples, expected their scores (save ranks as floats). {remedy}"
        )
    if num_samples >= _MIN_SORTED and scores.min() < scores.max() and _is_sorted(scores):
        raise ConfigError(
            f"the values of {path} are sorted ({scores[0]:g} to {scores[-1]:g}), expected scores "
            f"in the order of the sample ids. {remedy}"
        )
    return scores


def _is_sorted(values: npt.NDArray[Any]) -> bool:
    # Not np.diff: differences of unsigned numbers are never negative.
    before, after = values[:-1], values[1:]
    return bool((before <= after).all() or (before >= after).all())


def _is_permutation(values: npt.NDArray[Any]) -> bool:
    """Return whether the values are a permutation of 0, ..., n - 1, such as an argsort."""
    if values.min() != 0 or values.max() != len(values) - 1:
        return False
    return bool((np.bincount(values.astype(np.int64), minlength=len(values)) == 1).all())


def _read_table(path: Path, data_fingerprint: str) -> Any:
    import pyarrow as pa

    try:
        if path.suffix == ".csv":
            from pyarrow import csv

            return csv.read_csv(path)
        from pyarrow import parquet

        table = parquet.ParquetFile(path).read()
    except pa.ArrowInvalid as error:
        raise ConfigError(f"{path} is not readable as {path.suffix[1:]}: {error}") from error
    _require_same_data(path, (table.schema.metadata or {}).get(_METADATA_KEY), data_fingerprint)
    return table


def _require_same_data(path: Path, metadata: bytes | None, data_fingerprint: str) -> None:
    """Compare the fingerprint in a file's metadata, if there is one, with that of the data."""
    if metadata is None:
        return
    try:
        found = str(json.loads(metadata)["data_fingerprint"])
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"the metadata kdcache of {path} is {metadata[:40]!r}, expected a JSON object with "
            "data_fingerprint, as --export writes it. Write the file again without this metadata"
        ) from error
    if found != data_fingerprint:
        raise CacheMismatchError(
            f"{path} holds scores of other data: data_fingerprint is {found[:12]}, expected "
            f"{data_fingerprint[:12]}"
        )


def _numbers(path: Path, table: Any, name: str) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = table[name].to_numpy()
    if values.dtype.kind not in "fiu":
        raise ConfigError(f"{name} in {path} is {table[name].type}, expected numbers")
    return native_numbers(values)


def _require_ids_of_data(path: Path, ids: npt.NDArray[Any], num_samples: int) -> None:
    outside = ids[(ids < 0) | (ids >= num_samples)]
    if len(outside):
        raise ConfigError(
            f"{path} has a score of sample {outside[0]}, expected samples 0 to {num_samples - 1:,}"
            ": these are scores of other data"
        )


def _require_same_names(
    path: Path, ids: npt.NDArray[Any], names: list[str], sample_names: Sequence[str]
) -> None:
    """Check that sample ids and file names mean the same images.

    A file of another pack of the same images may number them in another order.
    """
    for sample_id, name in zip(ids.tolist(), names, strict=True):
        parts = PurePath(name or "").parts
        if PurePath(sample_names[sample_id]).parts[-len(parts) :] != parts:
            raise ConfigError(
                f"{path} says that sample {sample_id} is {name}, expected "
                f"{sample_names[sample_id]}: its sample ids are of another pack. Remove the column "
                "sample_id, so that the names count"
            )


def _by_sample_id(
    path: Path, ids: npt.NDArray[Any], values: npt.NDArray[Any], num_samples: int
) -> npt.NDArray[Any]:
    counts = np.bincount(ids.astype(np.int64, copy=False), minlength=num_samples)
    wrong = np.flatnonzero(counts != 1)
    if len(wrong):
        raise ConfigError(
            f"{path} has {counts[wrong[0]]} scores of sample {wrong[0]} ({len(wrong):,} such "
            f"samples), expected one score of each of the {num_samples:,} samples"
        )
    scores = np.empty(num_samples, dtype=values.dtype)
    scores[ids] = values
    return scores


def _ids_of_names(path: Path, names: list[str], sample_names: Sequence[str]) -> Any:
    """Return the sample id of each name; a name may be the last parts of the sample's path."""
    ids = np.empty(len(names), dtype=np.int64)
    known: dict[int, dict[tuple[str, ...], int]] = {}
    for row, name in enumerate(names):
        parts = PurePath(name or "").parts
        if len(parts) not in known:
            known[len(parts)] = _ids_by_suffix(sample_names, len(parts))
        found = known[len(parts)].get(parts)
        if found is None:
            raise ConfigError(
                f"{path} has a score of {name}, which is not a training image, expected names such "
                f"as {sample_names[0]}"
            )
        if found < 0:
            raise ConfigError(
                f"{path} has a score of {name}, which is the name of more than one training image, "
                f"expected names with enough folders to be unique, such as {sample_names[0]}"
            )
        ids[row] = found
    return ids


def _ids_by_suffix(sample_names: Sequence[str], length: int) -> dict[tuple[str, ...], int]:
    """Return the last `length` parts of a path -> its sample id; -1 if several samples match."""
    ids: dict[tuple[str, ...], int] = {}
    for sample_id, name in enumerate(sample_names):
        suffix = PurePath(name).parts[-length:] if length else ()
        ids[suffix] = -1 if suffix in ids else sample_id
    return ids
