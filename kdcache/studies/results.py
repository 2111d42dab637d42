"""The results: one Parquet file, one row per student, replaced whole after each of them.

Several processes may add rows to one file: each reads it, adds its row and replaces it under a lock
beside it, so none is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdcache.errors import CacheCorruptError
from kdcache.files import replace_atomically
from kdcache.locks import file_lock

COLUMNS: dict[str, str] = {
    # which student, and whether it is there
    "cell": "string",
    "kind": "string",  # student, or teacher
    "status": "string",  # ok, or failed
    "error": "string",
    "block": "string",
    # its settings
    "data": "string",
    "label_noise": "double",
    "tune_fraction": "double",
    "student": "string",
    "method": "string",
    "keep": "double",
    "kd": "bool",
    "loss": "string",
    "alpha": "string",
    "temperature": "double",
    "views": "string",
    "reshape": "bool",
    "teacher": "string",
    "teacher_settings": "string",  # JSON
    "score_teacher": "string",
    "score_teacher_settings": "string",  # JSON
    "recipe": "string",
    "arm": "string",  # what recipes make equal: epochs, steps, or longer
    "batch_size": "int64",
    "evaluations": "int64",
    "seed": "int64",
    "options": "string",  # JSON: other options of `kdcache select` and `kdcache train`
    # what it came to
    "top1_last": "double",
    "top1_best": "double",
    "top5_last": "double",
    "samples": "int64",
    "steps": "int64",
    "student_forwards": "int64",
    "teacher_forwards": "int64",
    "processor_seconds": "double",  # null where the run was continued
    "wall_seconds": "double",  # null where anything else ran, too
    # where it comes from
    "data_digest": "string",
    "subset_digest": "string",
    "teacher_digest": "string",
    "store_digest": "string",
    "version": "string",
    "package_digest": "string",
    "wheel_digest": "string",
    "commit": "string",
    "formats": "string",
    "processor": "string",
    "torch": "string",
    "date": "string",  # UTC
}
"""Every column -> its Arrow type, in order."""


class Results:
    """The rows of a results file.

    Args:
        path: of the Parquet file, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> list[dict[str, Any]]:
        """Return every row as it is in the file now; columns that it lacks are None.

        Raises:
            CacheCorruptError: if the file is no table of results.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self.path.exists():
            return []
        try:
            rows: list[dict[str, Any]] = pq.read_table(self.path).to_pylist()
        except pa.ArrowInvalid as error:
            raise CacheCorruptError(f"{self.path} is not readable as Parquet: {error}") from error
        if rows and "cell" not in rows[0]:
            raise CacheCorruptError(
                f"{self.path} has no column cell, expected the results of kdcache study. Name "
                "another file with --results"
            )
        return [dict.fromkeys(COLUMNS) | row for row in rows]

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row, and replace an earlier one of the same cell, unless that one has succeeded.

        Raises:
            OSError: if the file cannot be written, such as on a full disk; it is as it was.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        lock = self.path.with_name(f".{self.path.name}.lock")
        with file_lock(lock, purpose="row of results", wait=True):
            rows = self.rows()
            if any(other["cell"] == row["cell"] and other["status"] == "ok" for other in rows):
                return
            rows = [other for other in rows if other["cell"] != row["cell"]]
            rows.append(dict.fromkeys(COLUMNS) | dict(row))
            fields = [(name, pa.type_for_alias(kind)) for name, kind in COLUMNS.items()]
            table = pa.Table.from_pylist(rows, schema=pa.schema(fields))
            with replace_atomically(self.path) as partial:
                pq.write_table(table, partial, compression="zstd")
