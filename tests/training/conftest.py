"""What the tests of the loop and of its commands share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kdcache.data.beton import open_beton
from kdcache.progress import logger
from kdcache.selection.subset import Subset
from kdcache.training.train import train
from kdcache.workspace import Workspace
from tests.training.loops import Parts, options
from tests.workspaces import copy_workspace


@pytest.fixture(scope="module")
def parts(tiny_workspace: Path, tiny_store) -> Iterator[Parts]:
    """What trainers are made of, on 40 samples of `tiny_workspace`."""
    parts = Parts(tiny_workspace, tiny_store.path)
    yield parts
    parts.loader.close()
    parts.plain_loader.close()


@pytest.fixture(scope="module")
def finished(tiny_store, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A workspace in which one student was trained on a subset, with the result."""
    workspace = tmp_path_factory.mktemp("train") / "workspace"
    copy_workspace(tiny_store.path.parents[1], workspace)
    beton = open_beton(workspace / "train.beton")
    subset = Subset(np.arange(5, 55), {"data_fingerprint": beton.manifest.fingerprint})
    subset.save(workspace / "subsets/fifty.npz")
    Workspace(workspace).remember("subset", workspace / "subsets/fifty.npz")
    # Other tests may have built other stores beside it.
    Workspace(workspace).remember("store", workspace / "stores/projection.zarr")
    return workspace, train(options(workspace)).to_json()


@pytest.fixture
def workspace(finished: tuple[Path, dict], tmp_path: Path) -> Path:
    """A copy to write to."""
    return copy_workspace(finished[0], tmp_path / "workspace")


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """What the package says."""
    found: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    before = logger.handlers, logger.level
    logger.handlers = [Handler()]
    logger.setLevel(logging.INFO)
    yield found
    logger.handlers = before[0]
    logger.setLevel(before[1])
