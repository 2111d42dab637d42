"""What a process may take."""

from __future__ import annotations

import psutil
import pytest

from kdcache.memory import available_bytes, default_budget_bytes


def test_without_a_limit_it_is_the_machines_memory(tmp_path):
    assert available_bytes([tmp_path / "none"]) == psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("text", "expected"),
    [("max\n", None), ("1073741824\n", 1 << 30), ("9223372036854771712\n", None)],
)
def test_a_containers_limit_counts_where_it_is_less(tmp_path, text, expected):
    (tmp_path / "memory.max").write_text(text)
    found = available_bytes([tmp_path / "none", tmp_path / "memory.max"])
    assert found == (expected or psutil.virtual_memory().total)


def test_half_of_it_is_for_buffers_and_rows():
    assert default_budget_bytes() == available_bytes() // 2
