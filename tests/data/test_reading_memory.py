"""Parquet is read in batches, whatever the size of a row group; the plan counts their memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdcache.data.pack_plan import plan_workload, probe_split
from kdcache.data.source import PickedSplit, RelabelledSplit, reader_bytes
from kdcache.data.sources import open_source
from kdcache.options import PackOptions
from tests.data.source_files import png, value_of

MEBIBYTE = 1 << 20


def write_padded(path: Path, greys: list[int], size: int, **options: object) -> Path:
    """Write PNGs that are padded to a size, with zeros that compress well, in one row group."""
    files = [png(grey).ljust(size, b"\0") for grey in greys]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": file, "path": "x"} for file in files], kind)
    table = pa.table({"image": images, "label": [grey % 2 for grey in greys]})
    pq.write_table(table, path, row_group_size=len(greys), compression="zstd", **options)
    return path


def test_rows_of_a_large_row_group_are_read_in_any_order(tmp_path):
    greys = list(range(200))
    path = write_padded(tmp_path / "a.parquet", greys, 300_000)
    split = open_source(str(path)).splits["train"]
    assert 1 < split.batch_rows < 100
    order = np.random.default_rng(0).permutation(len(greys))[:40].tolist()
    assert [value_of(split.read(row)) for row in order] == order
    edges = [
        row for first in (0, split.batch_rows) for row in (first, first + split.batch_rows - 1)
    ]
    assert [value_of(split.read(row)) for row in [*edges, 199, 0, 199]] == [*edges, 199, 0, 199]


@pytest.mark.parametrize("has_dictionary", [True, False])
def test_each_worker_counts_the_memory_that_it_reads_with(tmp_path, has_dictionary):
    path = write_padded(
        tmp_path / "a.parquet", list(range(64)), MEBIBYTE, use_dictionary=has_dictionary
    )
    split = open_source(str(path)).splits["train"]
    assert split.batch_rows * MEBIBYTE <= 16 * MEBIBYTE
    # All images are in one dictionary or one page, which is read as a whole.
    least = 2 * 64 * MEBIBYTE
    assert least <= reader_bytes(split, MEBIBYTE) <= least + 100 * MEBIBYTE
    for wrapped in (PickedSplit(split, np.arange(9)), RelabelledSplit(split, split.labels)):
        assert reader_bytes(wrapped, MEBIBYTE) == reader_bytes(split, MEBIBYTE)
    options = PackOptions(str(path), workspace=tmp_path / "w")
    need = plan_workload(split, probe_split(split, options), "raw", options).need
    assert need.reader >= least
    assert need.memory(16) - need.memory(15) > need.reader + 350 * MEBIBYTE


MEASURE = """
import sys
from pathlib import Path
from kdcache.data.sources import open_source

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) << 10

split = open_source(sys.argv[1]).splits["train"]
before = peak()
total = sum(len(split.read(row)) for row in range(len(split.labels)))
print(total, peak() - before, split.reader_bytes(1 << 20))
"""


@pytest.mark.long
@pytest.mark.parametrize("has_dictionary", [True, False])
def test_reading_takes_no_more_memory_than_is_counted(tmp_path, has_dictionary):
    path = write_padded(
        tmp_path / "a.parquet", list(range(250)), MEBIBYTE, use_dictionary=has_dictionary
    )
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True
    )
    total, taken, counted = map(int, done.stdout.split())
    assert total == 250 * MEBIBYTE
    assert taken < 1.1 * counted
