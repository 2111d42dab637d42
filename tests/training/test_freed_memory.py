"""A training process keeps the memory that a step frees."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PAGES_OF_50_BLOCKS = """
import resource, sys, torch
from kdcache.training.freed_memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
torch.zeros(1 << 25, dtype=torch.uint8).fill_(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    torch.empty(1 << 25, dtype=torch.uint8).fill_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    command = [sys.executable, "-c", PAGES_OF_50_BLOCKS, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the GNU C library")
def test_freed_blocks_are_not_mapped_anew():
    """Of 50 blocks of 8,192 pages a few are mapped; without it nearly all are."""
    given_back = page_faults("given back")
    assert given_back > 25 * 8_192
    assert page_faults("kept") < given_back / 2
