"""A workspace with a finished store, ready for `kdcache select`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kdcache.store.logit_store import LogitStore
from kdcache.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path, tiny_store: LogitStore) -> Path:
    """A workspace of its own with a copy of `tiny_store`, the last one built."""
    root = tmp_path / "workspace"
    shutil.copytree(tiny_store.path, root / "stores" / tiny_store.path.name)
    Workspace(root).remember("store", root / "stores" / tiny_store.path.name)
    return root
