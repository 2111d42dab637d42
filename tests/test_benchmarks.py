"""Every benchmark runs on a small input, and prints figures."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.long


def output_of(script: str, *arguments: str) -> str:
    """Run a benchmark as a user does; return what it prints."""
    process = subprocess.run(
        [sys.executable, f"benchmarks/{script}.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_epoch_throughput_names_every_arm():
    printed = output_of("epoch_throughput", "--tiny")
    rates = re.findall(r"^(\D+?)\s+([\d,.]+)\s+[\d.]+%", printed, flags=re.MULTILINE)
    assert len(rates) == 6
    assert all(float(rate.replace(",", "")) > 0 for _, rate in rates)


@pytest.mark.parametrize("script", ["store", "codecs", "losses", "selection", "teacher_pass"])
def test_a_benchmark_prints_figures(script):
    assert re.search(r"[\d,.]+", output_of(script, "--tiny"))


def test_the_pipeline_prints_each_kind_of_student_and_counts_no_teacher_forward():
    printed = output_of(
        *("end_to_end", "digits", "--teacher", "resnet8", "--teacher-epochs", "1"),
        *("--views", "1", "--epochs", "1", "--seeds", "2"),
    )
    rows = re.findall(r"^students, ([\d,]+) images, (\w+) +(.*)$", printed, flags=re.MULTILINE)
    assert [(kept, method) for kept, method, _ in rows] == [("1,007", "medium"), ("72", "random")]
    for *_, figures in rows:
        assert re.fullmatch(r"\d+\.\d\d \+- \d+\.\d\d +\d+\.\d\d \+- \d+\.\d\d", figures)
    assert "teacher forwards during student training: 0 (counted)" in printed
    assert "teacher forwards to build it: 2,876" in printed  # 1,438 images, clean and one view
