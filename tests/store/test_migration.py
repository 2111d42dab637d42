"""Stores of versions 1 and 2 of the format, and manifests that no version wrote."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from kdcache.errors import CacheCorruptError, CacheMismatchError
from kdcache.store.logit_store import LogitStore
from tests.store.builds import NUM_SAMPLES, build, check
from tests.store.conftest import snapshot


def as_version_2(path: Path) -> None:
    """Write the manifest as the second version of kdcache did: one teacher, one size."""
    about = json.loads((path / "zarr.json").read_text())
    content = about["attributes"]["kdcache"]
    (mean,), (std,) = content["mean"], content["std"]
    content |= {"format_version": 2, "mean": mean, "std": std}
    for name in ("teachers", "ensemble", "teacher_size", "clean_share"):
        del content[name]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    about["attributes"] = {"kdcache": content, "kdcache_digest": digest}
    (path / "zarr.json").write_text(json.dumps(about))


def as_version_1(path: Path) -> None:
    """Write the manifest as the first version of kdcache did: no rows, no digest of itself."""
    as_version_2(path)
    about = json.loads((path / "zarr.json").read_text())
    content = about["attributes"]["kdcache"] | {"format_version": 1}
    del content["rows"], content["rows_digest"]
    about["attributes"] = {"kdcache": content}
    (path / "zarr.json").write_text(json.dumps(about))


WRITE = {1: as_version_1, 2: as_version_2, 3: lambda _: None}


@pytest.fixture(params=[1, 2], ids=["version 1", "version 2"])
def old_store(store_path, request) -> Path:
    WRITE[request.param](store_path)
    return store_path


def test_an_older_store_gives_the_same_rows(old_store, tiny_store):
    store = LogitStore.open(old_store)
    assert store.manifest == tiny_store.manifest
    assert store.num_views == tiny_store.num_views
    ids = np.random.default_rng(1).permutation(NUM_SAMPLES)
    for view in range(4):
        np.testing.assert_array_equal(store.rows(ids, view), tiny_store.rows(ids, view))
    np.testing.assert_array_equal(store.scores["el2n"], tiny_store.scores["el2n"])


def test_an_older_store_can_be_verified_and_extended(old_store, workspace):
    assert check(workspace, store=str(old_store))["images"] == NUM_SAMPLES
    before = snapshot(old_store)
    result = build(workspace, views=4)
    assert (result["views"], result["teacher_forwards"]) == (4, NUM_SAMPLES)
    after = snapshot(old_store)
    assert {key: after[key] for key in before} == before  # the manifest too
    assert LogitStore.open(old_store).num_views == 4


@pytest.mark.parametrize("version", [0, 4, 99, "2", None])
def test_a_version_that_cannot_be_read_is_named(store_path, version):
    about = json.loads((store_path / "zarr.json").read_text())
    about["attributes"]["kdcache"]["format_version"] = version
    (store_path / "zarr.json").write_text(json.dumps(about))
    with pytest.raises(
        CacheMismatchError, match=rf"format_version of .* is {version!r}, expected one of 1, 2, 3\."
    ):
        LogitStore.open(store_path)


@pytest.mark.parametrize("version", WRITE)
@pytest.mark.parametrize(
    ("change", "odd"),
    [
        (lambda content: content.pop("view_seed"), "view_seed"),
        (lambda content: content.pop("samples"), "samples"),
        (lambda content: content.update(colour="red"), "colour"),
        (lambda content: (content.pop("codec"), content.update(kodec="x")), "codec, kodec"),
    ],
)
def test_fields_that_are_missing_or_unknown_are_named(store_path, change, odd, version):
    WRITE[version](store_path)
    about = json.loads((store_path / "zarr.json").read_text())
    change(about["attributes"]["kdcache"])
    (store_path / "zarr.json").write_text(json.dumps(about))
    with pytest.raises(CacheCorruptError, match=f"missing or unknown fields: {odd}. .*overwrite"):
        LogitStore.open(store_path)


def test_fields_of_version_3_are_unknown_to_version_2(store_path):
    about = json.loads((store_path / "zarr.json").read_text())
    about["attributes"]["kdcache"]["format_version"] = 2
    (store_path / "zarr.json").write_text(json.dumps(about))
    with pytest.raises(CacheCorruptError, match="clean_share, ensemble, teacher_size, teachers"):
        LogitStore.open(store_path)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("damage", ["no digest", "another seed"])
def test_a_manifest_that_differs_from_its_digest_is_refused(store_path, version, damage):
    """Without a digest it would pass for one of version 1."""
    WRITE[version](store_path)
    about = json.loads((store_path / "zarr.json").read_text())
    if damage == "no digest":
        del about["attributes"]["kdcache_digest"]
    else:
        about["attributes"]["kdcache"]["view_seed"] += 1
    (store_path / "zarr.json").write_text(json.dumps(about))
    with pytest.raises(CacheCorruptError, match="differs from its digest"):
        LogitStore.open(store_path)
