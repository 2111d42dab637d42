"""Verify finds every flipped byte of a beton and of its digests."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from kdcache.data.beton import open_beton
from kdcache.data.check import check_beton
from kdcache.data.digests import digests_path
from kdcache.data.repack import pack_subset
from kdcache.errors import (
    DatasetError,
)
from kdcache.selection.subset import Subset
from kdcache.workspace import Workspace
from tests.store.builds import NUM_SAMPLES, check, flip
from tests.store.conftest import snapshot
from tests.store.test_verify import SUBSET_ROWS


@pytest.fixture
def path(damaged_workspace) -> Path:
    return damaged_workspace / "stores/with_head.zarr"


@pytest.fixture
def own_beton(damaged_workspace) -> Path:
    """The training beton of the workspace, in a file of its own."""
    path = damaged_workspace / "train.beton"
    for file in damaged_workspace.glob("train.*"):
        target = file.resolve()
        file.unlink()
        shutil.copy(target, file)
    return path


def test_a_flipped_byte_of_an_image_is_found_and_the_sample_is_named(own_beton):
    beton = open_beton(own_beton)
    content = bytearray(own_beton.read_bytes())
    for sample_id, offset in ((17, 0), (3, int(beton.lengths[3]) - 1)):
        content[int(beton.pointers[sample_id]) + offset] ^= 1
    own_beton.write_bytes(content)
    source = beton.manifest.made_from["path"]
    with pytest.raises(DatasetError, match=r"of 2 of 72 samples .*the first are 3, 17") as error:
        check(own_beton.parent)
    assert f"kdcache pack {source} " in str(error.value)
    assert "--val-fraction 0.25" in str(error.value)
    assert str(error.value).endswith(f"--overwrite --workspace {own_beton.parent}")


def test_a_store_is_not_repaired_from_damaged_images(own_beton, path):
    beton = open_beton(own_beton)
    content = bytearray(own_beton.read_bytes())
    content[int(beton.pointers[9])] ^= 1
    own_beton.write_bytes(content)
    flip(path / "views/1/rows/c/2/0")
    before = snapshot(path)
    with pytest.raises(DatasetError, match="the first are 9"):
        check(own_beton.parent, repair=True)
    assert snapshot(path) == before


def test_a_flipped_byte_of_the_digests_is_found(own_beton):
    flip(digests_path(own_beton))
    with pytest.raises(DatasetError, match=r"(digests|samples).*kdcache pack"):
        check(own_beton.parent)


def places_of(dtype: np.dtype, start: int) -> list[int]:
    """Return the last byte of each field of one entry of a table; what lies between is unused."""
    fields = [dtype.fields[name] for name in dtype.names]
    return [start + offset + kind.itemsize - 1 for kind, offset, *_ in fields]


def test_a_flipped_byte_in_any_table_of_a_beton_is_found(own_beton):
    from ffcv.fields import IntField, RGBImageField
    from ffcv.types import ALLOC_TABLE_TYPE, FieldDescType, HeaderType, get_metadata_type

    content = own_beton.read_bytes()
    table = int(np.frombuffer(content, HeaderType, count=1)[0]["alloc_table_ptr"])
    metadata = HeaderType.itemsize + 3 * FieldDescType.itemsize
    rows = get_metadata_type([RGBImageField(), IntField(), IntField()])
    image = rows.fields["f0"][0]
    places = {
        "header": places_of(HeaderType, 0),
        "image": places_of(image, metadata + 5 * rows.itemsize),
        "label and id": places_of(rows, metadata + 7 * rows.itemsize)[1:],
        "allocation": places_of(ALLOC_TABLE_TYPE, table + 9 * ALLOC_TABLE_TYPE.itemsize),
    }
    unseen = []
    for what, found in places.items():
        for place in found:
            damaged = bytearray(content)
            damaged[place] ^= 1
            own_beton.write_bytes(damaged)
            if check_beton(own_beton).error is None:
                unseen.append((what, place))
    assert unseen == []


def test_everything_that_is_damaged_is_said(own_beton, path, caplog):
    workspace = own_beton.parent
    flip(own_beton, int(open_beton(own_beton).pointers[9]))
    (path / "zarr.json").write_bytes(b"{")
    with pytest.raises(DatasetError, match="the first are 9"):
        check(workspace)
    assert "with_head.zarr/zarr.json is damaged" in caplog.text
    caplog.clear()
    shutil.rmtree(path)
    with pytest.raises(DatasetError, match="the first are 9"):
        check(workspace)
    assert "with_head.zarr does not exist" in caplog.text


def test_a_store_that_is_not_there_is_said_before_anything_is_read(own_beton, tmp_path):
    flip(own_beton, int(open_beton(own_beton).pointers[9]))
    with pytest.raises(FileNotFoundError, match=r"gone\.zarr does not exist"):
        check(own_beton.parent, store=str(tmp_path / "gone.zarr"))


def test_the_betons_of_subsets_are_read_too(damaged_workspace):
    kept = damaged_workspace / "subsets/few of them.npz"
    Subset(np.arange(SUBSET_ROWS, dtype=np.int64) * 3).save(kept)
    packed = pack_subset(Workspace(damaged_workspace), str(kept), overwrite=False)
    assert check(damaged_workspace)["images"] == NUM_SAMPLES + SUBSET_ROWS
    flip(packed, int(open_beton(packed).pointers[4]))
    with pytest.raises(
        DatasetError, match=r"few of them\.beton has changed.* the first are 12\."
    ) as error:
        check(damaged_workspace)
    assert f"kdcache pack --subset '{kept}' --overwrite" in str(error.value)
