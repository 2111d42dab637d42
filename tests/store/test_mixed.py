"""A store that is continued under other conditions: refused, or recorded shard by shard."""

from __future__ import annotations

import json

import pytest

from kdcache.errors import CacheMismatchError
from kdcache.seals import parse_sealed_json
from kdcache.store.logit_store import LogitStore
from tests.store.builds import NUM_SAMPLES, build, check, flip
from tests.store.conftest import snapshot
from tests.store.editing import change_manifest


def test_other_conditions_are_refused_unless_they_are_allowed(store_path, workspace):
    before = snapshot(store_path)
    with pytest.raises(CacheMismatchError, match=r"batch_size is 4, found 8.*allow_mixed"):
        build(workspace, views=4, batch_size=4)
    assert snapshot(store_path) == before
    assert LogitStore.open(store_path).num_views == 3


def test_what_is_made_under_other_conditions_is_recorded_with_each_shard(store_path, workspace):
    (store_path / "views/2/rows/c/4/0").unlink()
    before = snapshot(store_path)
    result = build(workspace, views=4, batch_size=4, allow_mixed=True)
    assert result["teacher_forwards"] == 8 + NUM_SAMPLES
    after = snapshot(store_path)
    assert {key: after[key] for key in before} == before
    records = {
        key: parse_sealed_json(content, key, remedy="")
        for key, content in after.items()
        if "/mixed/" in key
    }
    assert records.keys() == {
        "views/2/mixed/4.json",
        *(f"views/4/mixed/{shard}.json" for shard in range(9)),
    }
    about = LogitStore.open(store_path).manifest
    for record in records.values():
        assert record == {
            "batch_size": 4,
            "shard_rows": 8,
            "device": about.device,
            "versions": about.versions,
        }
    assert check(workspace, store=str(store_path))["repaired"] == []


def test_another_version_is_another_condition(store_path, workspace):
    versions = {"kdcache": "0.0.1", "torch": "1.0", "ffcv": "1.0"}
    change_manifest(store_path, versions=versions, device="abacus")
    (store_path / "views/1/rows/c/0/0").unlink()
    with pytest.raises(CacheMismatchError, match=r"device is 'cpu .*found 'abacus'; versions is"):
        build(workspace)
    build(workspace, allow_mixed=True)
    record = json.loads((store_path / "views/1/mixed/0.json").read_text())
    assert record["device"].startswith("cpu (threads: ")
    assert record["versions"]["torch"] != "1.0"


def test_allowed_and_not_needed_nothing_is_recorded(store_path, workspace):
    before = snapshot(store_path)
    (store_path / "views/1/rows/c/0/0").unlink()
    build(workspace, allow_mixed=True)
    assert snapshot(store_path) == before


def test_a_damaged_record_is_found_and_its_shard_is_made_again(store_path, workspace):
    build(workspace, views=4, batch_size=4, allow_mixed=True)
    before = snapshot(store_path)
    flip(store_path / "views/4/mixed/3.json", 0)
    found = check(workspace, store=str(store_path), repair=True)
    assert found["repaired"] == ["views/4/mixed/3.json"]
    # Under the store's own conditions now: there is nothing to record any more.
    after = snapshot(store_path)
    assert before.keys() - after.keys() == {"views/4/mixed/3.json"}
    assert LogitStore.open(store_path).num_views == 4
