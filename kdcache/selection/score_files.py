"""Scores from a file and to a file: `.npy` by sample id, `.csv` and `.parquet` by id or file name.

A file that holds something else than one score for each sample is refused: an order or a mask of
the kept (published code writes both beside its scores), and values that were sorted, which have
lost their samples.
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
_LARGEST_BYTES = 8
"""Of one number."""
_FEWEST_SORTED = 10
"""From here on, values in ascending or descending order are no accident: 2 in 10! = 3.6 million."""


def read_scores(
    path: Path,
    num_samples: int,
    *,
    data_fingerprint: str,
    sample_names: Callable[[], Sequence[str]],
) -> npt.NDArray[Any]:
    """Return the scores of a file, (N,) by sample id: float32, float64, int64 or uint64.

    Args:
        path: `.npy`: (N,) numbers by sample id. `.csv`, `.parquet`: a column `score` and one of
            `sample_id` and `file`, in any order; other columns are not read.
        num_samples: N.
        data_fingerprint: of the data that the scores must be of, where the file says.
        sample_names: returns the path of every sample's image, by sample id; called for `file`. A
            name in the file may be the end of such a path, from a folder on.

    Raises:
        ConfigError: if the file is of another kind, a sample has no score or two, or the values are
            no scores; names the samples.
        CacheMismatchError: if the scores are of other data.
    """
    require_suffix("scores", path, SCORE_FILES)
    if path.suffix == ".npy":
        return _read_npy(path, num_samples)
    table = _read_table(path, data_fingerprint)
    keys = [name for name in ("sample_id", "file") if name in table.column_names]
    if "score" not in table.column_names or len(keys) != 1:
        raise ConfigError(
            f"{path} has the columns {', '.join(table.column_names)}, expected `score` and one of "
            "`sample_id` and `file`"
        )
    values = _numbers(path, table, "score")
    if keys == ["sample_id"]:
        ids = _numbers(path, table, "sample_id")
        if not np.issubdtype(ids.dtype, np.integer):
            raise ConfigError(f"sample_id in {path} is {ids.dtype}, expected integers without gaps")
        names = None
    else:
        names = table["file"].to_pylist()
        ids = _ids_of_names(path, names, sample_names())
    return _by_sample_id(path, ids, values, num_samples)


def write_scores(
    path: Path,
    scores: npt.NDArray[Any],
    labels: npt.NDArray[np.int64],
    kept_ids: npt.NDArray[np.int64],
    *,
    data_fingerprint: str,
) -> None:
    """Write every sample's score, atomically, in a form that `read_scores` reads.

    Args:
        path: `.npy`: the scores alone. `.csv`, `.parquet`: `sample_id`, `label`, `score`, `kept`.
        scores: (N,) by sample id.
        labels: (N,) by sample id.
        kept_ids: of the samples that a subset keeps.
        data_fingerprint: written into `.parquet`.
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
        table = pa.table(
            {"sample_id": np.arange(len(scores)), "label": labels, "score": scores, "kept": kept}
        )
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
        raise ConfigError(f"{path} is no array of numbers ({error}), expected scores") from error
    remedy = "Give one score for each sample, by sample id, or a .csv with a column `sample_id`"
    if not isinstance(scores, np.ndarray) or scores.shape != (num_samples,):
        raise ConfigError(
            f"{path} is of shape {getattr(scores, 'shape', 'several arrays')}, expected "
            f"({num_samples},). {remedy}"
        )
    if scores.dtype.kind not in "fiu" or scores.dtype.itemsize > _LARGEST_BYTES:
        raise ConfigError(f"{path} holds {scores.dtype}, expected numbers of 64 bits. {remedy}")
    scores = native_numbers(scores)
    if scores.dtype.kind != "f" and _is_permutation(scores):
        raise ConfigError(
            f"{path} holds every number from 0 to {num_samples - 1:,} once, which is an order of "
            f"the samples, expected their scores (save ranks of difficulty as floats). {remedy}"
        )
    if num_samples >= _FEWEST_SORTED and scores.min() < scores.max() and _is_sorted(scores):
        raise ConfigError(
            f"the values of {path} are sorted ({scores[0]:g} to {scores[-1]:g}), so they have lost "
            f"their samples, expected them by sample id. {remedy}"
        )
    return scores


def _is_sorted(values: npt.NDArray[Any]) -> bool:
    # Compared, not subtracted: of unsigned numbers no difference is below zero.
    before, after = values[:-1], values[1:]
    return bool((before <= after).all() or (before >= after).all())


def _is_permutation(values: npt.NDArray[Any]) -> bool:
    """Return whether the values are 0, ..., n - 1 in some order, as an argsort is."""
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
    _require_of_data(path, (table.schema.metadata or {}).get(_METADATA_KEY), data_fingerprint)
    return table


def _require_of_data(path: Path, metadata: bytes | None, data_fingerprint: str) -> None:
    """Compare what a file says that its scores are of, where it says so, with the data."""
    if metadata is None:
        return
    try:
        found = str(json.loads(metadata)["data_fingerprint"])
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"the metadata kdcache of {path} is {metadata[:40]!r}, expected a JSON object with "
            "data_fingerprint, as --export writes it. Write the file again, without the metadata"
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


def _by_sample_id(
    path: Path, ids: npt.NDArray[Any], values: npt.NDArray[Any], num_samples: int
) -> npt.NDArray[Any]:
    outside = ids[(ids < 0) | (ids >= num_samples)]
    if len(outside):
        raise ConfigError(
            f"{path} has a score of sample {outside[0]}, expected samples 0 to {num_samples - 1:,}"
            ": these are scores of other data"
        )
    counts = np.bincount(ids.astype(np.int64, copy=False), minlength=num_samples)
    wrong = np.flatnonzero(counts != 1)
    if len(wrong):
        raise ConfigError(
            f"{path} has {counts[wrong[0]]} scores of sample {wrong[0]} ({len(wrong):,} such "
            f"samples), expected one of each of the {num_samples:,} samples"
        )
    scores = np.empty(num_samples, dtype=values.dtype)
    scores[ids] = values
    return scores


def _ids_of_names(path: Path, names: list[str], sample_names: Sequence[str]) -> Any:
    """Return the sample id of each name, which may be the end of the sample's path."""
    ids = np.empty(len(names), dtype=np.int64)
    known: dict[int, dict[tuple[str, ...], int]] = {}
    for row, name in enumerate(names):
        parts = PurePath(name or "").parts
        if len(parts) not in known:
            known[len(parts)] = _ends(sample_names, len(parts))
        found = known[len(parts)].get(parts)
        if found is None:
            raise ConfigError(
                f"{path} has a score of {name}, which is no file of the training images, expected "
                f"names such as {sample_names[0]}"
            )
        if found < 0:
            raise ConfigError(
                f"{path} has a score of {name}, and more than one training image is called so, "
                f"expected names from a folder on that tells them apart, such as {sample_names[0]}"
            )
        ids[row] = found
    return ids


def _ends(sample_names: Sequence[str], length: int) -> dict[tuple[str, ...], int]:
    """Return sample ids by the last parts of their paths; -1 where that is not one sample."""
    ids: dict[tuple[str, ...], int] = {}
    for sample_id, name in enumerate(sample_names):
        end = PurePath(name).parts[-length:] if length else ()
        ids[end] = -1 if end in ids else sample_id
    return ids
