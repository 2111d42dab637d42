from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.long

ARMS = {
    "kdcache",
    "stock FFCV",
    "DataLoader, PIL",
    "DataLoader, torchvision.io",
    "DataLoader, arrays",
    "libjpeg-turbo alone",
}
OPTIONAL_ARMS = {"WebDataset", "LitData", "SPDL"}


def test_the_loader_benchmark_runs_tiny_and_names_every_arm():
    process = subprocess.run(
        [sys.executable, "benchmarks/loader.py", "--tiny"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    table, _, _ = process.stdout.partition("kdcache / arm")
    rates = dict(re.findall(r"^(\S.*?) {2,}([\d,.]+) +[\d.]+% ", table, flags=re.MULTILINE))
    missing = re.findall(r"^(\S.*?) {2,}not installed: no arm$", table, flags=re.MULTILINE)
    assert rates.keys() | set(missing) == ARMS | OPTIONAL_ARMS
    assert set(missing) <= OPTIONAL_ARMS
    assert all(float(rate.replace(",", "")) > 0 for rate in rates.values())
