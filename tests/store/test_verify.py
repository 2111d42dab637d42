"""Verify and repair: every flipped byte is found, named, and made again as it was."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kdcache.errors import (
    CacheCorruptError,
    CacheMismatchError,
    ConfigError,
    TeacherError,
)
from kdcache.files import read_json
from kdcache.options import VerifyOptions
from kdcache.seals import BLANK, seal, sealed_json
from kdcache.selection.subset import Subset
from kdcache.store.format.codec_file import read_decision
from kdcache.store.format.layout import FEATURES, INITIAL_ARRAYS, PER_SAMPLE_ARRAYS, open_group
from kdcache.store.format.location import open_zarr_store
from kdcache.store.format.shards import write_shard
from kdcache.store.logit_store import LogitStore
from kdcache.store.upkeep.inspection import find_damage
from tests.store.builds import NUM_SAMPLES, PROJECTION, WITH_HEAD, build, check, flip
from tests.store.conftest import fresh_workspace, snapshot
from tests.store.editing import change_manifest

SUBSET_ROWS = 20


def times(path: Path) -> dict[str, int]:
    return {
        str(file.relative_to(path)): file.stat().st_mtime_ns
        for file in path.rglob("*")
        if file.is_file()
    }


@pytest.fixture
def path(damaged_workspace) -> Path:
    return damaged_workspace / "stores/with_head.zarr"


def a_shard_of_every_array() -> list[str]:
    flat = {"labels", "sample_ids", *PER_SAMPLE_ARRAYS}
    names = [
        *INITIAL_ARRAYS,
        *PER_SAMPLE_ARRAYS,
        FEATURES,
        *(f"views/{view}/rows" for view in range(3)),
    ]
    # The arrays of the clean view are cut into 9 shards, those that are given into one.
    return [
        f"{name}/c/{0 if name in INITIAL_ARRAYS else number % 9}" + ("" if name in flat else "/0")
        for number, name in enumerate(names)
    ]


EVERY_KIND = [
    *a_shard_of_every_array(),
    "codec.npz",
    *("views/0/complete", "views/2/complete"),
    *("views/zarr.json", "scores/zarr.json", "views/1/zarr.json"),
    *("labels/zarr.json", "sample_ids/zarr.json", "pixel_probe/zarr.json", "features/zarr.json"),
    *("stats/top1/zarr.json", "views/0/rows/zarr.json", "views/1/rows/zarr.json"),
]


def find(path: Path) -> list[str]:
    return [
        key for key, _ in find_damage(*open_group(open_zarr_store(path, read_only=True), path=""))
    ]


def test_a_flipped_byte_is_found_in_every_key_below_the_root(path):
    keys = set(snapshot(path)) - {"zarr.json"}
    structure = {key for key in keys if key.endswith("/zarr.json")}
    assert len(keys - structure) > 9 * len(PER_SAMPLE_ARRAYS)
    assert find(path) == []
    # What a damaged zarr.json or codec.npz says of others is not known: these go for themselves.
    for together in (structure, {"codec.npz"}, keys - structure - {"codec.npz"}):
        intact = {key: (path / key).read_bytes() for key in together}
        for key in together:
            flip(path / key, 0)  # of a JSON file its brace, of codec.npz the signature
        assert find(path) == sorted(together)
        for key, content in intact.items():
            (path / key).write_bytes(content)
    assert find(path) == []


@pytest.mark.parametrize("key", EVERY_KIND)
def test_repair_gives_back_the_undisturbed_bytes_and_names_the_key(damaged_workspace, path, key):
    before, untouched = snapshot(path), times(path)
    flip(path / key, len(before[key]) // 2 if key == "codec.npz" else 0)
    found = check(damaged_workspace, repair=True)
    assert key in found["repaired"]
    after = snapshot(path)
    assert after.keys() == before.keys()
    assert [name for name in before if after[name] != before[name]] == []
    again = {name for name, time in times(path).items() if time != untouched[name]}
    assert key in again
    if key not in {"pixel_probe/zarr.json", "features/zarr.json"}:
        # Nothing else is written, not even with the same bytes.
        together = {key}
        if key.split("/")[0] in INITIAL_ARRAYS:
            together.add(key.partition("/c/")[0] + "/zarr.json")
        if key.startswith(("scores/", "stats/", "features/")) and "/c/" in key:
            shard = key.split("/c/")[1].split("/")[0]
            # One forward answers all of a shard of the clean view.
            together = {name for name in before if f"/c/{shard}" in name and "views/1" not in name}
            together |= {f"views/0/rows/c/{shard}/0"}
        elif key.startswith("views/0/rows/c/"):
            shard = key.split("/")[4]
            together = {name for name in before if f"/c/{shard}" in name}
        assert again <= together
    assert check(damaged_workspace)["repaired"] == []


def test_what_is_damaged_is_named_and_the_rest_counted(damaged_workspace, path):
    found = check(damaged_workspace)
    assert (found["images"], found["store"]) == (NUM_SAMPLES, str(path))
    assert (found["repaired"], found["rows_compared"]) == ([], None)
    for shard in range(9):
        flip(path / f"views/1/rows/c/{shard}/0")
        flip(path / f"scores/el2n/c/{shard}")
    with pytest.raises(CacheCorruptError, match="has 18 damaged files: scores/el2n/c/0: ") as error:
        check(damaged_workspace)
    assert "views/1/rows/c/0/0: " in str(error.value)
    assert " and 8 more. Run kdcache verify --repair" in str(error.value)


def test_several_damaged_files_are_repaired_at_once(damaged_workspace, path):
    before = snapshot(path)
    keys = ["views/1/rows/c/2/0", "views/2/rows/c/8/0", "stats/logit_std/c/4", "codec.npz"]
    for key in keys:
        flip(path / key)
    (path / "scores/margin/c/1").unlink()
    (path / "views/2/rows/zarr.json").write_text("{}")
    found = check(damaged_workspace, repair=True)
    keys.remove("views/2/rows/c/8/0")  # not read: what its array looks like is lost
    assert {*keys, "scores/margin/c/1", "views/2/rows/zarr.json"} <= set(found["repaired"])
    assert snapshot(path) == before


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"zarr_format": 3}'])
def test_a_root_that_says_nothing_is_refused_and_left_as_it_is(damaged_workspace, path, content):
    (path / "zarr.json").write_bytes(content)
    before = snapshot(path)
    for repair in (False, True):
        with pytest.raises(CacheCorruptError, match=r"with_head\.zarr.*build-logits"):
            check(damaged_workspace, repair=repair)
    assert snapshot(path) == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"view_seed": 0', '"view_seed": 1'),
        ('"samples": 72', '"samples": 73'),
        ('"precision": "fp32"', '"precision": "fp33"'),
        ('"kdcache-seal:', '"kdcache-seal:0'),
    ],
)
def test_a_manifest_that_was_edited_is_refused(damaged_workspace, path, old, new):
    about = (path / "zarr.json").read_text()
    assert about.count(old) == 1
    (path / "zarr.json").write_text(about.replace(old, new))
    with pytest.raises(CacheCorruptError, match=r"zarr\.json differs from its seal.*overwrite"):
        check(damaged_workspace, repair=True)
    with pytest.raises(CacheCorruptError, match=r"zarr\.json differs from its seal"):
        LogitStore.open(path)


def test_every_bit_of_the_manifest_counts(path):
    """No flipped bit in the root leaves a store that opens and says something else."""
    intact = (path / "zarr.json").read_bytes()
    meant = LogitStore.open(path).manifest
    for place in range(0, len(intact), 7):
        flip(path / "zarr.json", place)
        try:
            found = LogitStore.open(path).manifest
        except (CacheCorruptError, CacheMismatchError):
            found = meant
        assert found == meant, intact[max(0, place - 20) : place + 20]
        (path / "zarr.json").write_bytes(intact)


@pytest.mark.parametrize("key", ["scores/zarr.json", "views/1/zarr.json", "stats/top1/zarr.json"])
def test_a_word_of_a_zarr_json_that_was_changed_is_found(path, key):
    """A word that zarr does not know: it would refuse the file."""
    about = (path / key).read_text()
    (path / key).write_text(about.replace('"attributes"', '"attributfs"'))
    assert find(path) == [key]


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x03\x04" + bytes(60)])
def test_a_codec_file_that_is_no_archive_is_made_again(damaged_workspace, path, content):
    before = snapshot(path)
    (path / "codec.npz").write_bytes(content)
    with pytest.raises(CacheCorruptError, match=r"codec\.npz of .* is no npz file.*repair"):
        LogitStore.open(path)
    assert check(damaged_workspace, repair=True)["repaired"] == ["codec.npz"]
    assert snapshot(path) == before


def test_no_bit_of_a_codec_file_is_a_traceback(path):
    group, manifest = open_group(open_zarr_store(path, read_only=True), path="")
    intact = (path / "codec.npz").read_bytes()
    refused = 0
    for place in [*range(64), *range(len(intact) - 200, len(intact))]:
        for bit in (1, 64):
            content = bytearray(intact)
            content[place] ^= bit
            (path / "codec.npz").write_bytes(content)
            try:
                read_decision(group, manifest)
            except CacheCorruptError as error:
                assert "codec.npz" in str(error)  # noqa: PT017  (counted below)
                refused += 1
    assert refused == 2 * 264


# Conditions of a repair


def under_other_conditions(path: Path) -> None:
    """Write the manifest as another version of torch would have."""
    versions = json.loads((path / "zarr.json").read_text())["attributes"]["kdcache"]["versions"]
    change_manifest(path, versions=versions | {"torch": "1.0"})


def test_a_repair_that_would_mix_conditions_removes_nothing(store_path, workspace):
    record = store_path / "views/1/mixed/2.json"
    record.parent.mkdir()
    record.write_text("{")
    under_other_conditions(store_path)
    before = snapshot(store_path)
    with pytest.raises(CacheMismatchError, match=r"torch.*1\.0.*Nothing was changed.*allow_mixed"):
        check(workspace, store=str(store_path), repair=True)
    assert snapshot(store_path) == before
    found = check(workspace, store=str(store_path), repair=True, allow_mixed=True)
    assert found["repaired"] == ["views/1/mixed/2.json"]
    after = snapshot(store_path)
    assert after.keys() == before.keys()
    assert json.loads(after["views/1/mixed/2.json"])["versions"]["torch"] != "1.0"
    assert {key for key in before if after[key] != before[key]} == {"views/1/mixed/2.json"}


def test_what_needs_no_teacher_is_repaired_under_any_conditions(store_path, workspace):
    under_other_conditions(store_path)
    before = snapshot(store_path)
    for key in ("views/1/rows/zarr.json", "views/2/complete", "labels/c/0"):
        flip(store_path / key, 0)
    assert len(check(workspace, store=str(store_path), repair=True)["repaired"]) == 3
    assert snapshot(store_path) == before


def test_a_repair_from_other_images_removes_nothing(store_path, workspace):
    change_manifest(store_path, data_fingerprint="f" * 64)
    flip(store_path / "views/1/rows/c/2/0")
    before = snapshot(store_path)
    with pytest.raises(CacheMismatchError, match=r"data_fingerprint.*Nothing was changed"):
        check(workspace, store=str(store_path), repair=True)
    assert snapshot(store_path) == before


def test_a_shard_that_is_made_as_the_others_loses_its_record(store_path, workspace):
    before = snapshot(store_path)
    record = store_path / "views/1/mixed/2.json"
    record.parent.mkdir()
    record.write_bytes(sealed_json({"batch_size": 5}))
    flip(store_path / "views/1/rows/c/2/0")
    check(workspace, store=str(store_path), repair=True)
    assert snapshot(store_path) == before


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"rows": 5}, "rows=5: expected teacher"),
        ({"seed": 5, "repair": True}, "seed=5: expected teacher"),
        ({"device": "cpu"}, "device=cpu: expected teacher or repair"),
        ({"num_workers": 3}, "num_workers=3: expected teacher or repair"),
        ({"arch": "resnet8"}, "arch=resnet8: expected teacher or repair"),
        ({"allow_mixed": True, "teacher": "a"}, "allow_mixed=True: expected repair"),
    ],
)
def test_an_option_that_nothing_would_read_is_refused(options, named):
    with pytest.raises(ConfigError, match=named):
        VerifyOptions(**options)


def test_a_workspace_with_nothing_to_verify_says_so(tmp_path):
    with pytest.raises(ConfigError, match="holds no beton and no store"):
        check(tmp_path)


def test_a_store_may_be_verified_without_its_images(whole, tmp_path):
    found = check(tmp_path, store=str(whole / "stores/with_head.zarr"))
    assert (found["images"], found["repaired"]) == (0, [])


# What a repair cannot know


def test_the_lost_sample_ids_of_a_subset_come_back_with_the_subset(tmp_path, tiny_workspace):
    workspace = fresh_workspace(tmp_path / "w", tiny_workspace)
    Subset(np.arange(SUBSET_ROWS, dtype=np.int64) * 3).save(workspace / "subsets/third.npz")
    path = Path(build(workspace, views=1, subset="third")["path"])
    before = snapshot(path)
    flip(path / "sample_ids/c/0")
    with pytest.raises(CacheCorruptError, match=r"sample_ids/c/0 .*is lost.*subset"):
        check(workspace, repair=True)
    (path / "sample_ids/c/0").unlink()
    assert build(workspace, views=1, subset="third")["teacher_forwards"] == 0
    assert snapshot(path) == before


def test_views_whose_codec_is_lost_are_made_again(damaged_workspace, path):
    """As after an update of a library that fits another basis: no view is read with a wrong one."""
    before = snapshot(path)
    for view in (1, 2):
        rows = path / f"views/{view}/rows/zarr.json"
        about = json.loads(rows.read_text())
        about["attributes"] |= {"kdcache_codec": "0" * 64, "kdcache_seal": BLANK}
        rows.write_bytes(seal(json.dumps(about).encode()))
    with pytest.raises(CacheCorruptError, match=r"view 1 of .* was encoded with another codec"):
        LogitStore.open(path)
    assert "codec.npz" in check(damaged_workspace, repair=True)["repaired"]
    assert snapshot(path) == before


def test_repair_with_another_teacher_is_refused_and_changes_nothing(store_path, workspace):
    flip(store_path / "views/1/rows/c/2/0")
    before = snapshot(store_path)
    options = {"store": str(store_path), "repair": True}
    with pytest.raises(TeacherError, match=r"other_projection is not the teacher of .* sha256"):
        check(workspace, **options, teacher="tests.teachers:other_projection")
    assert snapshot(store_path) == before
    assert check(workspace, **options)["repaired"] == ["views/1/rows/c/2/0"]


# The teacher, asked again


def test_a_store_agrees_with_its_own_teacher(store_path, workspace):
    found = check(workspace, store=str(store_path), teacher=PROJECTION, rows=16)
    assert found["rows_compared"] == 4 * 16
    assert 0 <= found["largest_difference"] <= found["bound"]
    assert found["bound"] < 0.01


def test_a_store_under_a_codec_that_loses_something_agrees_too(whole):
    found = check(whole, teacher=WITH_HEAD, rows=NUM_SAMPLES)
    assert found["rows_compared"] == 3 * NUM_SAMPLES
    assert found["largest_difference"] <= found["bound"]


def test_the_weights_of_another_teacher_are_refused_and_counted(store_path, workspace):
    with pytest.raises(
        TeacherError,
        match=r"other logits than .* for 64 of 64 rows; .* expected at most .* at fp32",
    ) as error:
        check(workspace, store=str(store_path), teacher="tests.teachers:other_projection", rows=16)
    assert read_json(store_path / "zarr.json")["attributes"]["kdcache"]["teacher_digest"][:12] in (
        str(error.value)
    )


def test_another_teacher_is_refused_under_a_codec_that_loses_something_too(whole):
    with pytest.raises(TeacherError, match=r"for \d+ of 48 rows"):
        check(whole, teacher=PROJECTION, rows=16)


def test_one_row_that_the_teacher_did_not_give_is_found(store_path, workspace):
    """Bytes may be whole, in their place, and wrong: the rows of view 2 as those of view 1."""
    store = LogitStore.open(store_path)
    group, _ = open_group(open_zarr_store(store_path, read_only=False), path="")
    write_shard(group, "views/1/rows", 4, store.rows(np.arange(32, 40), 2))
    assert check(workspace, store=str(store_path))["repaired"] == []
    with pytest.raises(TeacherError, match=rf"for 8 of {4 * NUM_SAMPLES} rows"):
        check(workspace, store=str(store_path), teacher=PROJECTION, rows=NUM_SAMPLES)


def test_a_result_is_plain_json(whole):
    assert json.loads(json.dumps(check(whole)))["store"].endswith("with_head.zarr")
