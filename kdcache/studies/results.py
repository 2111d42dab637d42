"""The results: a Parquet file with one row per student or teacher.

Several processes may add rows to one file. Each takes a lock, reads the file, adds its row and
replaces the file, so no row is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdcache.errors import CacheCorruptError
from kdcache.files import replace_atomically
from kdcache.locks import file_lock

COLUMNS: dict[str, str] = {
    # identity and status
    "cell": "string",
    "kind": "string",  # student, or teacher
    "status": "string",  # ok, or failed
    "error": "string",
    "block": "string",
    # settings
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
    "arm": "string",  # what the recipe keeps equal: epochs, steps, or longer
    "batch_size": "int64",
    "evaluations": "int64",
    "seed": "int64",
    "options": "string",  # JSON: other options of `kdcache select` and `kdcache train`
    # outcome
    "top1_last": "double",
    "top1_best": "double",
    "top5_last": "double",
    "samples": "int64",
    "steps": "int64",
    "student_forwards": "int64",
    "teacher_forwards": "int64",
    "processor_seconds": "double",  # null if the run was resumed
    "wall_seconds": "double",  # null if the run was resumed or other processes ran
    # origin
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
"""Column -> Arrow type, in the order of the file."""


class Results:
    """The rows of a results file.

    Args:
        path: the Parquet file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> list[dict[str, Any]]:
        """Read every row; columns that the file lacks are None.

        Raises:
            CacheCorruptError: if the file is not a results file.
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
        """Add a row. It replaces a failed row of the same cell; a row with status ok stays.

        Raises:
            OSError: if the file cannot be written. The existing file is unchanged.
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
