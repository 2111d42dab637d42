"""The room that a pack needs, and the errors where it is not there."""

from __future__ import annotations

import shutil

import pytest

from kdcache.data.resources import (
    WORKER_BYTES,
    ResourceEstimate,
    available_memory,
    require_disk,
    require_memory,
    require_resources,
    require_shared_memory,
)
from kdcache.errors import DatasetError

PHOTOS = ResourceEstimate(
    samples=1000, stored=100_000, decoded=600_000, split=50_000, queue=4_000_000
)


def test_memory_grows_with_samples_and_workers():
    one, two = PHOTOS.memory(1), PHOTOS.memory(2)
    # Four copies of the largest image, the list of images, the queue.
    assert two - one == WORKER_BYTES + 4 * 600_000 + 50_000 + 4_000_000
    assert PHOTOS.memory(0) == 1000 * 160 + 50_000
    assert PHOTOS._replace(samples=10**6).memory(1) - one == (10**6 - 1000) * 160


def test_too_little_memory_names_the_number_of_workers_that_would_do():
    require_memory(PHOTOS, 8, PHOTOS.memory(8))
    with pytest.raises(DatasetError, match=r"with 8 workers takes about 3\.0 GB .*num_workers=7$"):
        require_memory(PHOTOS, 8, PHOTOS.memory(8) - 1)
    with pytest.raises(DatasetError, match=r"the 1\.1 GB that are free.*num_workers=3$"):
        require_memory(PHOTOS, 8, PHOTOS.memory(3))
    with pytest.raises(DatasetError, match="max_resolution"):
        require_memory(PHOTOS, 8, PHOTOS.memory(1) - 1)


def test_too_little_disk_is_told_before_and_not_after(tmp_path):
    require_disk(PHOTOS, tmp_path, 80_000_000)
    with pytest.raises(DatasetError, match=f"takes about 0.1 GB, .* free in {tmp_path}"):
        require_disk(PHOTOS, tmp_path, 79_999_999)


def test_a_folder_for_semaphores_is_needed(tmp_path):
    require_shared_memory(tmp_path)
    with pytest.raises(DatasetError, match=f"{tmp_path / 'shm'} is missing or read-only"):
        require_shared_memory(tmp_path / "shm")


def test_the_memory_that_is_free_is_the_machines_or_the_containers(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 8000 kB\nMemAvailable:    5000 kB\nHugePages_Total: 0\n")
    assert available_memory(meminfo, tmp_path) == 5000 << 10
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(meminfo, tmp_path) == 5000 << 10
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("2500000\n")
    (tmp_path / "memory.stat").write_text("anon 9\ninactive_file 400000\n")
    assert available_memory(meminfo, tmp_path) == 900_000
    (tmp_path / "memory.max").write_text("9000000000\n")
    assert available_memory(meminfo, tmp_path) == 5000 << 10


def test_this_machine_has_room_for_little(tmp_path):
    require_resources(ResourceEstimate(1, 1, 1, 1, 1), 1, tmp_path)
    assert available_memory() > 0
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(DatasetError, match="the beton takes about"):
        require_resources(ResourceEstimate(2, free, 1, 1, 1), 1, tmp_path)
    with pytest.raises(DatasetError, match="packing with 1 workers takes about"):
        require_resources(ResourceEstimate(1, 1, 2**60, 1, 1), 1, tmp_path)
