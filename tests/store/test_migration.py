"""Stores of earlier versions, and manifests that no version wrote."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path

import pytest

from kdcache.commands import parse
from kdcache.errors import CacheCorruptError, CacheMismatchError
from kdcache.options import BuildLogitsOptions
from kdcache.seals import BLANK, seal
from kdcache.store.logit_store import LogitStore
from kdcache.store.manifest import FORMAT_VERSION
from tests.store.builds import build, check
from tests.store.conftest import snapshot


def manifest_of(path: Path) -> dict:
    return json.loads((path / "zarr.json").read_text())["attributes"]["kdcache"]


def write_manifest(path: Path, content: dict, *, sealed: bool) -> None:
    about = json.loads((path / "zarr.json").read_text())
    about["attributes"] = {"kdcache": content} | ({"kdcache_seal": BLANK} if sealed else {})
    text = json.dumps(about).encode()
    (path / "zarr.json").write_bytes(seal(text) if sealed else text)


def as_version_3(path: Path) -> None:
    """Write the manifest as the third version of kdcache did, with a digest beside it."""
    content = manifest_of(path) | {"format_version": 3}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    about = json.loads((path / "zarr.json").read_text())
    about["attributes"] = {"kdcache": content, "kdcache_digest": digest}
    (path / "zarr.json").write_text(json.dumps(about))


def as_version_1(path: Path) -> None:
    """Write the manifest as the first version of kdcache did: one teacher, no rows."""
    content = manifest_of(path) | {"format_version": 1}
    (mean,), (std,) = content["mean"], content["std"]
    content |= {"mean": mean, "std": std}
    for name in (
        "teachers",
        "ensemble",
        "teacher_size",
        "center_crop_ratio",
        "rows",
        "rows_digest",
    ):
        del content[name]
    write_manifest(path, content, sealed=False)


@pytest.mark.parametrize("as_earlier", [as_version_1, as_version_3])
def test_an_earlier_store_is_refused_with_the_command_that_builds_it_again(
    store_path, workspace, as_earlier, tiny_store
):
    as_earlier(store_path)
    before = snapshot(store_path)
    for use in (
        lambda: LogitStore.open(store_path),
        lambda: build(workspace),
        lambda: check(workspace),
    ):
        with pytest.raises(CacheMismatchError, match=r"format_version of .* expected 4") as error:
            use()
    assert snapshot(store_path) == before
    message = error.value.in_shell()
    assert "\n" not in message
    words = message.partition("Run: kdcache ")[2]
    options = parse(shlex.split(words)).options
    assert isinstance(options, BuildLogitsOptions)
    assert options.overwrite
    assert Path(options.workspace) == workspace
    about = tiny_store.manifest
    assert (options.views, options.codec, options.policy) == (3, about.codec, about.policy)
    assert (options.batch_size, options.view_seed) == (about.batch_size, about.view_seed)
    assert options.teacher == ("tests.teachers:projection",)
    assert Path(str(options.store)) == store_path


@pytest.mark.parametrize("version", [0, 3, 99, "4", None])
def test_a_version_that_cannot_be_read_is_named(store_path, version):
    write_manifest(store_path, manifest_of(store_path) | {"format_version": version}, sealed=True)
    with pytest.raises(
        CacheMismatchError, match=rf"format_version of .* is {version!r}, expected {FORMAT_VERSION}"
    ):
        LogitStore.open(store_path)


@pytest.mark.parametrize(
    ("change", "odd"),
    [
        (lambda content: content.pop("view_seed"), "view_seed"),
        (lambda content: content.pop("samples"), "samples"),
        (lambda content: content.update(colour="red"), "colour"),
        (lambda content: (content.pop("codec"), content.update(kodec="x")), "codec, kodec"),
    ],
)
def test_fields_that_are_missing_or_unknown_are_named(store_path, change, odd):
    content = manifest_of(store_path)
    change(content)
    write_manifest(store_path, content, sealed=True)
    with pytest.raises(CacheCorruptError, match=f"missing or unknown fields: {odd}. .*overwrite"):
        LogitStore.open(store_path)


@pytest.mark.parametrize("damage", ["no seal", "another seed"])
def test_a_manifest_that_differs_from_its_seal_is_refused(store_path, damage):
    text = (store_path / "zarr.json").read_text()
    changed = (
        text.replace("kdcache-seal", "kdcache-sael")
        if damage == "no seal"
        else text.replace('"view_seed": 0', '"view_seed": 1')
    )
    assert changed != text
    (store_path / "zarr.json").write_text(changed)
    with pytest.raises(CacheCorruptError, match=r"zarr\.json (has no|differs from its) seal"):
        LogitStore.open(store_path)
