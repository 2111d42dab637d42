"""Exported views read back with pyarrow and numpy alone, equal to the store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from kdcache.errors import CacheCorruptError, CacheMismatchError, ConfigError
from kdcache.options import ExportOptions
from kdcache.selection.subset import Subset
from kdcache.store.logit_store import LogitStore
from kdcache.store.upkeep import export as module
from kdcache.store.upkeep.export import export
from tests.data.packed_names import names_of
from tests.store.builds import NUM_SAMPLES, build, flip

KEPT = np.array([2, 3, 5, 60, 71], dtype=np.int64)


def exported(out: Path, store: Path, **options: Any) -> dict[str, Any]:
    return export(ExportOptions(out, store=str(store), **options)).to_json()


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return columns and manifest of an exported file, without anything of ours."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            columns = {name: file[name] for name in file.files}
        return columns, json.loads(str(columns.pop("manifest")))
    table = pq.read_table(path)
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    flat = {
        name: (
            values.flatten().to_numpy().reshape(len(values), -1)
            if name == "logits"
            else values.to_numpy(zero_copy_only=False)
        )
        for name, values in columns.items()
    }
    return flat, json.loads(table.schema.metadata[b"kdcache"])


@pytest.mark.parametrize("view", [0, 2])
@pytest.mark.parametrize("name", ["view.parquet", "view.npz"])
def test_an_exported_view_is_that_of_the_store(tiny_store, tmp_path, monkeypatch, name, view):
    monkeypatch.setattr(module, "ROWS_PER_GROUP", 10)  # several row groups, the last one short
    out = tmp_path / "new" / name
    result = exported(out, tiny_store.path, view=view)
    assert result == {
        "rows": NUM_SAMPLES,
        "classes": 4,
        "bytes": out.stat().st_size,
        "path": str(out),
    }
    columns, about = read(out)
    ids = np.arange(NUM_SAMPLES)
    expected = {
        "sample_id": ids,
        "label": tiny_store.labels,
        "logits": tiny_store.logits(ids, view),
        **tiny_store.scores,
        **tiny_store.stats,
    }
    assert columns.keys() == expected.keys()
    for column, values in expected.items():
        np.testing.assert_array_equal(columns[column], values)
        assert columns[column].dtype == values.dtype
    assert about == tiny_store.manifest.to_json() | {"view": view}
    if name.endswith(".parquet"):
        assert pq.ParquetFile(out).num_row_groups == 8


@pytest.mark.parametrize("name", ["view.parquet", "view.npz"])
def test_the_rows_of_a_subset_keep_their_own_labels_and_scores(workspace, tmp_path, name):
    Subset(KEPT).save(workspace / "subsets/kept.npz")
    built = build(workspace, views=1, subset="kept", codec="lowrank(k=2, r=2)")
    store = LogitStore.open(built["path"])
    exported(tmp_path / name, store.path, view=1)
    columns, _ = read(tmp_path / name)
    np.testing.assert_array_equal(columns["sample_id"], KEPT)
    np.testing.assert_array_equal(columns["label"], store.labels[KEPT])
    np.testing.assert_array_equal(columns["logits"], store.logits(KEPT, 1))
    np.testing.assert_array_equal(columns["margin"], store.scores["margin"][KEPT])


def test_a_file_that_is_there_is_replaced_only_when_asked(tiny_store, tmp_path):
    out = tmp_path / "view.npz"
    out.write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"view\.npz exists\. Use overwrite"):
        exported(out, tiny_store.path)
    assert out.read_bytes() == b"mine"
    exported(out, tiny_store.path, overwrite=True)
    assert read(out)[1]["view"] == 0


def test_a_view_that_is_not_there_is_refused_and_nothing_is_written(tiny_store, tmp_path):
    for name in ("view.npz", "view.parquet"):
        with pytest.raises(CacheMismatchError, match=r"view is 4, expected .* 0 to 3"):
            exported(tmp_path / name, tiny_store.path, view=4)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_shard_leaves_no_file(store_path, tmp_path):
    flip(store_path / "views/1/rows/c/8/0")
    for name in ("view.npz", "view.parquet"):
        with pytest.raises(CacheCorruptError, match=r"views/1/rows/c/8/0 of .* --repair"):
            exported(tmp_path / name, store_path, view=1)
        assert not (tmp_path / name).exists()
    assert list(tmp_path.glob("*.partial")) == []


@pytest.mark.parametrize("name", ["view.csv", "view", "view.npy"])
def test_a_kind_of_file_that_is_not_written_is_refused(name):
    with pytest.raises(ConfigError, match=rf"OUT is .*{name}, expected NAME\.parquet or NAME\.npz"):
        ExportOptions(Path(name))


def test_the_last_store_is_exported_where_none_is_named(workspace, tmp_path):
    build(workspace, views=0)
    result = export(ExportOptions(tmp_path / "view.npz", workspace=workspace)).to_json()
    assert result["rows"] == NUM_SAMPLES


@pytest.mark.parametrize("suffix", ["parquet", "npz"])
def test_an_export_names_each_image(workspace, tmp_path, suffix):
    build(workspace, views=1)
    out = tmp_path / f"view.{suffix}"
    export(ExportOptions(out, workspace=workspace, view=1))
    names = names_of(workspace / "train.beton")
    if suffix == "npz":
        with np.load(out) as arrays:
            assert arrays["file"].tolist() == names
    else:
        assert pq.read_table(out)["file"].to_pylist() == names
