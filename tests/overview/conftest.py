"""A workspace in which every command has run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kdcache.options import (
    BuildLogitsOptions,
    SelectOptions,
    TrainOptions,
    TrainTeacherOptions,
)
from kdcache.selection.select import select
from kdcache.store.build.build import build_logits
from kdcache.training.train import train
from kdcache.training.train_teacher import train_teacher
from tests.workspaces import copy_workspace


@pytest.fixture(scope="session")
def full_workspace(tiny_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, a store of 2 views, a subset of 50 and a run of 2 epochs. Read only."""
    workspace = tmp_path_factory.mktemp("full") / "workspace"
    copy_workspace(tiny_workspace, workspace)
    for leftover in ("stores", "subsets", "runs"):  # of other tests
        shutil.rmtree(workspace / leftover, ignore_errors=True)
    (workspace / "workspace.json").unlink(missing_ok=True)
    train_teacher(
        TrainTeacherOptions(workspace=workspace, model="resnet8", epochs=1, num_workers=1)
    )
    build_logits(
        BuildLogitsOptions(workspace=workspace, teacher=("resnet8",), views=2, num_workers=1)
    )
    select(SelectOptions(workspace=workspace))
    train(TrainOptions(workspace=workspace, epochs=2, num_workers=1))
    return workspace


@pytest.fixture
def workspace(full_workspace: Path, tmp_path: Path) -> Path:
    """A copy of `full_workspace`, to write to."""
    return copy_workspace(full_workspace, tmp_path / "workspace")
