"""Rows of several processes come together in one file, and its tables compare like with like."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kdcache.errors import CacheCorruptError, ConfigError
from kdcache.studies.results import COLUMNS, Results
from kdcache.studies.tables import Summary, table_of

ADD = """
import sys
from pathlib import Path
from kdcache.studies.results import Results
results = Results(Path(sys.argv[1]))
for number in range(25):
    results.add({"cell": f"{sys.argv[2]}-{number}", "status": "ok", "seed": number})
"""


def student(**settings: Any) -> dict[str, Any]:
    row = dict.fromkeys(COLUMNS) | {"status": "ok", "options": "{}", "method": "random"}
    return row | {"keep": 0.3, "kd": True, "seed": 0, "top1_last": 50.0} | settings


def test_concurrent_processes_lose_no_row(tmp_path):
    path = tmp_path / "results.parquet"
    adding = [subprocess.Popen([sys.executable, "-c", ADD, str(path), name]) for name in "abc"]
    assert [process.wait() for process in adding] == [0, 0, 0]
    found = {row["cell"] for row in Results(path).rows()}
    assert found == {f"{name}-{number}" for name in "abc" for number in range(25)}
    assert [file.name for file in tmp_path.glob(".*.partial")] == []


def test_a_failed_row_is_replaced_but_a_successful_one_is_not(tmp_path):
    results = Results(tmp_path / "results.parquet")
    for status, top1 in (("failed", None), ("ok", 1.0), ("failed", None), ("ok", 2.0)):
        results.add({"cell": "a", "status": status, "top1_last": top1})
    assert [(row["status"], row["top1_last"]) for row in results.rows()] == [("ok", 1.0)]


def test_another_file_is_not_accepted_as_results(tmp_path):
    path = tmp_path / "results.parquet"
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(CacheCorruptError, match="not readable as Parquet"):
        Results(path).rows()


def test_a_table_has_means_standard_errors_and_paired_differences():
    rows = [student(kd=False, seed=seed, top1_last=top1) for seed, top1 in enumerate([50, 52, 99])]
    rows += [student(kd=True, seed=seed, top1_last=top1) for seed, top1 in enumerate([53, 57])]
    table = table_of(rows, ["kd"], ["method", "keep"])
    assert (table.rows, table.columns) == (["no kd", "kd"], ["random, keep 0.3"])
    assert table.summary("kd", "random, keep 0.3") == Summary(55, 2, 2)
    assert table.difference("kd", "random, keep 0.3") == Summary(4, 1, 2)
    assert table.summary("kd", "other") is None
    assert Summary(4.0, 1.0, 2).text(sign=True) == "+4.00 ± 1.00 (2)"
    assert Summary.of([4.0]).text() == "4.00 (1)"


@pytest.mark.parametrize(
    ("setting", "one", "other"),
    [
        ("recipe", "20 epochs", "7800 steps"),
        ("alpha", "0.5", "0.9"),
        ("tune_fraction", None, 0.1),
        ("options", "{}", json.dumps({"score": "el2n"})),
    ],
)
def test_an_arm_pools_only_students_that_differ_in_their_seed(setting, one, other):
    rows = [student(seed=0, **{setting: one}), student(seed=1, **{setting: other})]
    with pytest.raises(ConfigError, match=rf"of {setting} .* in \(kd; keep 0.3\).* where"):
        table_of(rows, ["kd"], ["keep"])


def test_a_table_accepts_known_settings_only():
    rows = [student(options=json.dumps({"score": "el2n"}))]
    assert table_of(rows, ["score"], ["keep"]).rows == ["el2n"]
    with pytest.raises(ConfigError, match="kept is not a setting"):
        table_of(rows, ["kept"], ["keep"])


def test_columns_are_read_by_name_not_by_order(tmp_path):
    """A file of an earlier version, with fewer columns, goes on."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(tmp_path / "results.parquet")
    pq.write_table(pa.table({"cell": ["a"], "status": ["ok"]}), path)
    results = Results(path)
    results.add({"cell": "b", "status": "ok"})
    assert [row["cell"] for row in results.rows()] == ["a", "b"]
    assert pq.read_schema(path).names == list(COLUMNS)
