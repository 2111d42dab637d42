"""Parts built apart and brought together: the bytes of one build, or a refusal that says why."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from kdcache.errors import CacheIncompleteError, CacheMismatchError, ConfigError
from kdcache.options import MergeOptions
from kdcache.store.build.plan import Part
from kdcache.store.logit_store import LogitStore
from kdcache.store.upkeep.merge import merge
from tests.store.builds import NUM_SAMPLES, build, check
from tests.store.conftest import fresh_workspace, snapshot
from tests.store.editing import change_manifest

LOSSY = "lowrank(k=2, r=2)"


def merged(*parts: Path, out: Path, overwrite: bool = False) -> dict[str, Any]:
    return merge(
        MergeOptions([str(part) for part in parts], out=str(out), overwrite=overwrite)
    ).to_json()


def build_part(folder: Path, tiny_workspace: Path, part: str, **options: Any) -> Path:
    """Build one part on a machine of its own: another workspace."""
    workspace = folder / f"machine-{part.replace('/', '-of-')}"
    if not workspace.exists():
        fresh_workspace(workspace, tiny_workspace)
    return Path(build(workspace, part=part, **options)["path"])


@pytest.fixture(scope="module")
def dense(tmp_path_factory, tiny_workspace) -> tuple[list[Path], dict[str, bytes]]:
    """Three parts of a dense store with two views, and the files of an undisturbed build."""
    folder = tmp_path_factory.mktemp("parts")
    options = {"views": 2, "codec": "dense"}
    parts = [build_part(folder, tiny_workspace, f"{n}/3", **options) for n in (1, 2, 3)]
    workspace = fresh_workspace(folder / "whole", tiny_workspace)
    return parts, snapshot(Path(build(workspace, **options)["path"]))


def test_merged_parts_are_the_undisturbed_build(dense, tmp_path):
    parts, expected = dense
    result = merged(*parts, out=tmp_path / "m.zarr")
    assert result == {
        "parts": 3,
        "views": 2,
        "complete": 3,
        "missing_shards": 0,
        "path": str(tmp_path / "m.zarr"),
    }
    assert snapshot(tmp_path / "m.zarr") == expected


def test_the_order_of_the_parts_does_not_matter(dense, tmp_path):
    parts, expected = dense
    merged(parts[2], parts[0], parts[1], parts[0], out=tmp_path / "m.zarr")
    assert snapshot(tmp_path / "m.zarr") == expected


def test_parts_share_the_work(dense):
    parts, expected = dense
    shards = [{key for key in snapshot(part) if "/rows/c/" in key} for part in parts]
    assert [len(keys) for keys in shards] == [9, 9, 9]  # 3 of 9 blocks, of 3 views
    assert set.union(*shards) == {key for key in expected if "/rows/c/" in key}
    for part in parts:
        with pytest.raises(CacheIncompleteError, match="holds 0 of 3 views"):
            LogitStore.open(part)


def test_an_incomplete_merge_says_what_is_missing_and_can_be_finished(dense, workspace, caplog):
    parts, expected = dense
    out = workspace / "stores/projection.zarr"
    result = merged(parts[0], parts[2], out=out)
    assert (result["complete"], result["missing_shards"]) == (0, 9)
    assert "lacks 9 shards: run build-logits" in caplog.text
    with pytest.raises(CacheIncompleteError, match="holds 0 of 3 views"):
        LogitStore.open(out)
    assert build(workspace, views=2, codec="dense")["teacher_forwards"] == 9 * 8
    assert snapshot(out) == expected


def test_parts_of_a_store_whose_codec_is_decided_later(tmp_path, tiny_workspace, caplog):
    options = {"views": 2, "codec": LOSSY}
    parts = [build_part(tmp_path, tiny_workspace, f"{n}/2", **options) for n in (1, 2)]
    assert "lacks 4 shards, which other parts build" in caplog.text
    assert not any((part / "views/1").exists() or (part / "codec.npz").exists() for part in parts)
    # With all of view 0 each machine decides alike, and goes on with its share.
    clean = tmp_path / "clean.zarr"
    assert merged(*parts, out=clean)["complete"] == 1
    for number, part in enumerate(parts, 1):
        shutil.rmtree(part)
        shutil.copytree(clean, part)
        build_part(tmp_path, tiny_workspace, f"{number}/2", **options)
    result = merged(*parts, out=tmp_path / "m.zarr")
    assert (result["complete"], result["missing_shards"]) == (3, 0)
    workspace = fresh_workspace(tmp_path / "whole", tiny_workspace)
    path = Path(build(workspace, **options)["path"])
    assert snapshot(tmp_path / "m.zarr") == snapshot(path)


def test_parts_of_different_things_are_refused_and_what_differs_is_named(dense, tmp_path):
    parts, _ = dense
    other = tmp_path / "other.zarr"
    shutil.copytree(parts[1], other)
    change_manifest(other, view_seed=3, batch_size=16)
    with pytest.raises(CacheMismatchError, match=r"other\.zarr was built from") as error:
        merged(parts[0], other, out=tmp_path / "m.zarr")
    # As everywhere: what is wanted, and what the file has.
    assert "view_seed is 0, found 3" in str(error.value)
    assert "batch_size is 8, found 16" in str(error.value)
    assert str(error.value).count(", found ") == 2
    assert not (tmp_path / "m.zarr").exists()


def test_parts_that_hold_different_bytes_under_one_key_are_refused(dense, tmp_path):
    parts, _ = dense
    other = tmp_path / "other.zarr"
    shutil.copytree(parts[0], other)
    shard = other / "views/1/rows/c/3/0"
    shutil.copy(other / "views/2/rows/c/3/0", shard)  # whole, and another answer
    with pytest.raises(CacheMismatchError, match=r"views/1/rows/c/3/0 of .*other\.zarr differs"):
        merged(parts[0], other, out=tmp_path / "m.zarr")


def test_the_word_of_a_part_that_a_view_is_whole_is_not_taken(store_path, tmp_path):
    """A part may have lost a shard since; the other parts' shards may be there or not."""
    (store_path / "views/2/rows/c/4/0").unlink()
    result = merged(store_path, out=tmp_path / "m.zarr")
    assert (result["complete"], result["missing_shards"]) == (3, 1)
    with pytest.raises(CacheIncompleteError, match="holds 3 of 4 views"):
        LogitStore.open(tmp_path / "m.zarr")


def test_a_refused_merge_leaves_no_store_that_opens(dense, tmp_path):
    parts, _ = dense
    other = tmp_path / "other.zarr"
    shutil.copytree(parts[0], other)
    shutil.copy(other / "views/2/rows/c/3/0", other / "views/1/rows/c/3/0")
    with pytest.raises(CacheMismatchError):
        merged(*parts, other, out=tmp_path / "m.zarr")
    with pytest.raises(CacheIncompleteError):
        LogitStore.open(tmp_path / "m.zarr")


def test_a_store_at_the_target_is_replaced_only_when_asked(dense, tmp_path, tiny_store):
    parts, expected = dense
    out = tmp_path / "m.zarr"
    shutil.copytree(tiny_store.path, out)
    before = snapshot(out)
    with pytest.raises(ConfigError, match=r"m\.zarr: it exists. Use overwrite"):
        merged(*parts, out=out)
    assert snapshot(out) == before
    merged(*parts, out=out, overwrite=True)
    assert snapshot(out) == expected


def test_a_part_may_not_be_the_target(dense, tmp_path):
    """It would be removed before it was read."""
    part = tmp_path / "part.zarr"
    shutil.copytree(dense[0][0], part)
    before = snapshot(part)
    with pytest.raises(ConfigError, match=r"part\.zarr"):
        merged(part, dense[0][1], out=part, overwrite=True)
    assert snapshot(part) == before


def test_a_part_that_is_not_there_is_named(dense, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.zarr does not exist"):
        merged(dense[0][0], tmp_path / "gone.zarr", out=tmp_path / "m.zarr")
    assert not (tmp_path / "m.zarr").exists()
    with pytest.raises(ConfigError, match="parts"):
        MergeOptions([], out="m.zarr")


def test_a_merged_store_is_verified_like_any_other(dense, tmp_path, workspace):
    out = tmp_path / "m.zarr"
    merged(*dense[0], out=out)
    assert check(workspace, store=str(out))["images"] == NUM_SAMPLES


# Parts


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "1/", "/3", "a/b", "-1/3", "1/0", "1.0/2", ""])
def test_a_part_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="expected one such as 2/4") as error:
        Part.parse(text, {})
    assert f"part={text or repr(text)}: expected" in str(error.value)


def test_a_part_is_read():
    assert Part.parse(None, {}) == Part(0, 1)
    assert Part.parse("1/1", {}) == Part(0, 1)
    assert Part.parse("2/4", {}) == Part(1, 4)


def test_a_part_that_is_none_leaves_no_store(workspace):
    with pytest.raises(ConfigError, match="part=5/4"):
        build(workspace, part="5/4")
    assert not list(workspace.glob("stores/*.zarr"))


def test_more_parts_than_blocks_leave_some_with_nothing_to_do(tmp_path, tiny_workspace):
    path = build_part(tmp_path, tiny_workspace, "12/12", views=1)
    assert [key for key in snapshot(path) if "/rows/c/" in key] == []
