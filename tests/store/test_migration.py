"""Stores of version 1 of the format, and manifests that no version wrote."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kdcache.errors import CacheCorruptError, CacheMismatchError
from kdcache.store.logit_store import LogitStore
from tests.store.builds import NUM_SAMPLES, build, check
from tests.store.conftest import snapshot


def as_version_1(path: Path) -> None:
    """Write the manifest as the first version of kdcache did: no rows, no digest of itself."""
    about = json.loads((path / "zarr.json").read_text())
    content = about["attributes"]["kdcache"] | {"format_version": 1}
    del content["rows"], content["rows_digest"]
    about["attributes"] = {"kdcache": content}
    (path / "zarr.json").write_text(json.dumps(about))


@pytest.fixture
def old_store(store_path) -> Path:
    as_version_1(store_path)
    return store_path


def test_a_store_of_version_1_gives_the_same_rows(old_store, tiny_store):
    store = LogitStore.open(old_store)
    assert store.manifest == tiny_store.manifest
    assert store.num_views == tiny_store.num_views
    ids = np.random.default_rng(1).permutation(NUM_SAMPLES)
    for view in range(4):
        np.testing.assert_array_equal(store.rows(ids, view), tiny_store.rows(ids, view))
    np.testing.assert_array_equal(store.scores["el2n"], tiny_store.scores["el2n"])


def test_a_store_of_version_1_can_be_verified_and_extended(old_store, workspace):
    assert check(workspace, store=str(old_store))["images"] == NUM_SAMPLES
    before = snapshot(old_store)
    result = build(workspace, views=4)
    assert (result["views"], result["teacher_forwards"]) == (4, NUM_SAMPLES)
    after = snapshot(old_store)
    assert {key: after[key] for key in before} == before  # the manifest too
    assert LogitStore.open(old_store).num_views == 4


@pytest.mark.parametrize("version", [0, 3, 99, "2", None])
def test_a_version_that_cannot_be_read_is_named(store_path, version):
    about = json.loads((store_path / "zarr.json").read_text())
    about["attributes"]["kdcache"]["format_version"] = version
    (store_path / "zarr.json").write_text(json.dumps(about))
    with pytest.raises(
        CacheMismatchError, match=rf"format_version of .* is {version!r}, expected one of 1, 2\."
    ):
        LogitStore.open(store_path)


@pytest.mark.parametrize("old", [False, True], ids=["version 2", "version 1"])
@pytest.mark.parametrize(
    ("change", "odd"),
    [
        (lambda content: content.pop("view_seed"), "view_seed"),
        (lambda content: content.pop("samples"), "samples"),
        (lambda content: content.update(colour="red"), "colour"),
        (lambda content: (content.pop("codec"), content.update(kodec="x")), "codec, kodec"),
    ],
)
def test_fields_that_are_missing_or_unknown_are_named(store_path, change, odd, old):
    if old:
        as_version_1(store_path)
    about = json.loads((store_path / "zarr.json").read_text())
    change(about["attributes"]["kdcache"])
    (store_path / "zarr.json").write_text(json.dumps(about))
    with pytest.raises(CacheCorruptError, match=f"missing or unknown fields: {odd}. .*--overwrite"):
        LogitStore.open(store_path)


def test_a_version_2_store_without_its_digest_is_refused(store_path):
    """Else a damaged manifest would pass for an old one."""
    about = json.loads((store_path / "zarr.json").read_text())
    del about["attributes"]["kdcache_digest"]
    (store_path / "zarr.json").write_text(json.dumps(about))
    with pytest.raises(CacheCorruptError, match="differs from its digest"):
        LogitStore.open(store_path)
