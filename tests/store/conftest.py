"""Workspaces and stores that a test may damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from kdcache.data.policy import CENTER_CROP_RATIO
from kdcache.store.format.layout import PER_SAMPLE_ARRAYS
from kdcache.store.logit_store import LogitStore
from kdcache.store.manifest import FORMAT_VERSION, StoreManifest, digest_sample_ids
from kdcache.store.writer import StoreWriter
from tests.store.builds import WITH_HEAD, build


def fresh_workspace(folder: Path, tiny_workspace: Path) -> Path:
    """Make a workspace with the packed data of another, and nothing built."""
    folder.mkdir(parents=True)
    for file in tiny_workspace.glob("train.*"):
        (folder / file.name).symlink_to(file)
    return folder


@pytest.fixture
def workspace(tmp_path: Path, tiny_workspace: Path) -> Path:
    """A workspace of its own with 72 packed images in 4 classes, and nothing built."""
    return fresh_workspace(tmp_path / "workspace", tiny_workspace)


@pytest.fixture
def store_path(workspace: Path, tiny_store: LogitStore) -> Path:
    """A copy of `tiny_store` in `workspace`, finished."""
    path = workspace / "stores" / tiny_store.path.name
    shutil.copytree(tiny_store.path, path)
    return path


def snapshot(path: Path) -> dict[str, bytes]:
    """Return every file below a path with its bytes."""
    return {
        str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()
    }


def manifest(
    *,
    samples: int = 20,
    classes: int = 3,
    shard_rows: int = 4,
    codec: str = "float32",
    sample_ids: np.ndarray | None = None,
) -> StoreManifest:
    """Return the manifest of a store that is written by hand."""
    rows = np.arange(samples) if sample_ids is None else sample_ids
    return StoreManifest(
        format_version=FORMAT_VERSION,
        data_fingerprint="0" * 64,
        samples=samples,
        classes=classes,
        class_names=[f"class_{number}" for number in range(classes)],
        rows=len(rows),
        rows_digest=digest_sample_ids(rows),
        teacher="by-hand",
        teacher_arch="tests:by_hand",
        teacher_digest="1" * 64,
        teachers=["by-hand"],
        ensemble=None,
        policy="pad-crop(4, flip=True)",
        view_seed=0,
        image_size=32,
        teacher_size=32,
        center_crop_ratio=CENTER_CROP_RATIO,
        clean_filter="bilinear",
        pixel_definition="pillow",
        decode="full",
        mean=[[0.5, 0.5, 0.5]],
        std=[[0.2, 0.2, 0.2]],
        codec=codec,
        precision="fp32",
        shard_rows=shard_rows,
        batch_size=shard_rows,
        device="cpu",
        versions={"kdcache": "0"},
    )


def create(
    path: Path, about: StoreManifest, *, sample_ids: np.ndarray | None = None, views: int = 2
) -> StoreWriter:
    """Create a store with its arrays and no shard."""
    writer = StoreWriter.create(
        path,
        about,
        labels=np.arange(about.samples, dtype=np.int64) % about.classes,
        sample_ids=np.arange(about.samples, dtype=np.int64) if sample_ids is None else sample_ids,
    )
    writer.add_views(views)
    return writer


def rows_of(writer: StoreWriter, view: int) -> np.ndarray:
    """Return rows that spell view and sample id, (rows of the view, C)."""
    ids = writer.sample_ids(view)
    codes = view * 1000 + ids[:, None] + np.arange(writer.manifest.classes) / 10
    return codes.astype(np.float32)


def write_shard(writer: StoreWriter, view: int, shard: int) -> None:
    """Write one shard of `rows_of`, with scores and stats that spell the sample id."""
    size = writer.manifest.shard_rows
    part = slice(shard * size, (shard + 1) * size)
    ids = writer.sample_ids(view)[part]
    per_sample = {name: ids.astype(dtype) for name, dtype in PER_SAMPLE_ARRAYS.items()}
    writer.write_shard(view, shard, rows_of(writer, view)[part], {} if view else per_sample)


def write_everything(writer: StoreWriter) -> None:
    """Write every missing shard and finish every view."""
    for view in range(writer.num_views + 1):
        for shard in writer.missing_shards(view):
            write_shard(writer, view, shard)
        writer.finish_view(view)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_workspace) -> Path:
    """A workspace with a store that has every kind of key. Read only."""
    workspace = fresh_workspace(tmp_path_factory.mktemp("whole") / "w", tiny_workspace)
    build(workspace, WITH_HEAD, views=2, codec="lowrank(k=2, r=2)", features=True)
    return workspace


@pytest.fixture
def damaged_workspace(whole, tmp_path, tiny_workspace) -> Path:
    """A copy of `whole`, to damage."""
    workspace = fresh_workspace(tmp_path / "w", tiny_workspace)
    shutil.copytree(whole / "stores", workspace / "stores")
    shutil.copy(whole / "workspace.json", workspace)
    return workspace
