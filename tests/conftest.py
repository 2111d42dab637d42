"""Small real data for the tests: image files on disk, betons packed from them, stores built."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

# Before torch is loaded, for every process of the tests alike: models are so small here that a
# second thread costs more than it saves.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Without bytecode, each process under test would compile torch again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import numpy as np
import pytest
import torch
from PIL import Image

from kdcache.data.pack import pack
from kdcache.options import BuildLogitsOptions, PackOptions
from kdcache.progress import logger
from kdcache.store.build.build import build_logits
from kdcache.store.logit_store import LogitStore

ROOT = Path(__file__).parents[1]

REAL_DATA = Path(os.environ.get("KDCACHE_TEST_DATA", ROOT.parent / "shared" / "data"))
"""Folder of real image sets; tests that need one skip without it and say so."""


def real_data(name: str) -> Path:
    """Return the folder of a real image set, or skip the test."""
    path = REAL_DATA / name
    if not path.exists():
        pytest.skip(f"needs the image set {name} in {REAL_DATA} (set KDCACHE_TEST_DATA)")
    return path


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip GPU tests without a GPU, unless this run must not."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        if os.environ.get("KDCACHE_REQUIRE_CUDA") == "1":
            pytest.fail("this run was asked to test on a GPU and found none")
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def _no_thread_outlives_its_test() -> Iterator[None]:
    yield
    ours = [
        thread
        for thread in threading.enumerate()
        if thread.name.startswith(("kdcache-reader", "kdcache-commits"))
    ]
    assert not ours, f"threads still run: {ours}"


@pytest.fixture(autouse=True)
def _messages_reach_pytest() -> None:
    """Undo what the command line set up, in an earlier test or a longer-lived fixture."""
    logger.handlers, logger.propagate = [], True
    logger.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def _torch_generator_restored() -> Iterator[None]:
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


def write_images(folder: Path, *, count: int, classes: int, sides: tuple[int, int]) -> Path:
    """Write an ImageFolder of seeded smooth images, PNG up to 64 px and JPEG above.

    Args:
        folder: the root.
        count: images in all, dealt to the classes in turn.
        classes: number of class folders, named class_0, class_1, ...
        sides: smallest and largest height and width, inclusive.
    """
    rng = np.random.default_rng(0)
    low, high = sides
    for number in range(count):
        height, width = rng.integers(low, high + 1, size=2)
        if low == high:
            height = width = low
        coarse = rng.integers(0, 256, size=(4, 4, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((int(width), int(height)), Image.Resampling.BILINEAR)
        target = folder / f"class_{number % classes}"
        target.mkdir(parents=True, exist_ok=True)
        suffix = "png" if high <= 64 else "jpg"
        image.save(target / f"{number:04}.{suffix}")
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageFolder of 96 PNGs of 32 px in 4 classes, one split."""
    return write_images(tmp_path_factory.mktemp("tiny"), count=96, classes=4, sides=(32, 32))


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageFolder of 24 JPEGs of 80 to 160 px in 3 classes, one split."""
    return write_images(tmp_path_factory.mktemp("photos"), count=24, classes=3, sides=(80, 160))


@pytest.fixture(scope="session")
def tiny_workspace(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with `tiny_folder` packed: 72 training and 24 evaluation images. Read only."""
    workspace = tmp_path_factory.mktemp("tiny-workspace")
    pack(PackOptions(str(tiny_folder), workspace=workspace, val_fraction=0.25))
    return workspace


@pytest.fixture(scope="session")
def tiny_beton(tiny_workspace: Path) -> Path:
    """The training beton of `tiny_workspace`."""
    return tiny_workspace / "train.beton"


@pytest.fixture(scope="session")
def photo_beton(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JPEG beton of `photo_folder`'s 24 images, all for training."""
    workspace = tmp_path_factory.mktemp("photo-workspace")
    pack(PackOptions(str(photo_folder), workspace=workspace, val_fraction=0))
    return workspace / "train.beton"


@pytest.fixture(scope="session")
def tiny_store(tiny_workspace: Path) -> LogitStore:
    """An exact store of `tests.teachers:projection` over `tiny_beton`, 3 views, shards of 8."""
    result = build_logits(
        BuildLogitsOptions(
            teacher="tests.teachers:projection",
            workspace=tiny_workspace,
            views=3,
            codec="float32",
            batch_size=8,
            device="cpu",
        )
    ).to_json()
    return LogitStore.open(result["path"])


def kdcache(
    *arguments: str, workspace: Path, timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "kdcache", *arguments],
        cwd=ROOT,
        env=os.environ | {"KDCACHE_WORKSPACE": str(workspace)},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
