"""A workspace with a finished store, ready for `kdcache select`."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import zarr

from kdcache.store.format.layout import DIGEST_ATTRIBUTE, MANIFEST_ATTRIBUTE
from kdcache.store.logit_store import LogitStore
from kdcache.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path, tiny_store: LogitStore) -> Path:
    """A workspace of its own with a copy of `tiny_store`, the last one built."""
    root = tmp_path / "workspace"
    shutil.copytree(tiny_store.path, root / "stores" / tiny_store.path.name)
    Workspace(root).remember("store", root / "stores" / tiny_store.path.name)
    return root


def change_manifest(path: Path, **changes: object) -> None:
    """Let a store say that it was made from something else."""
    manifest = replace(LogitStore.open(path).manifest, **changes)
    attributes = {MANIFEST_ATTRIBUTE: manifest.to_json(), DIGEST_ATTRIBUTE: manifest.digest()}
    zarr.open_group(path, mode="r+").attrs.update(attributes)
