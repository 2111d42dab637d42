"""Stores at URLs: built, read, verified and trained from as in a folder."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import fsspec
import numpy as np
import pytest

from kdcache.errors import CacheCorruptError, ConfigError
from kdcache.options import ExportOptions, TrainOptions
from kdcache.store.format.location import (
    DurableStore,
    delete_key,
    exists,
    has_key,
    list_keys,
    open_zarr_store,
    read_key,
    size_bytes,
    write_key,
)
from kdcache.store.format.removal import delete_store
from kdcache.store.logit_store import LogitStore
from kdcache.store.upkeep.export import export
from kdcache.training.train import train
from tests.conftest import kdcache
from tests.store.builds import NUM_SAMPLES, PROJECTION, build, check
from tests.store.conftest import snapshot


@pytest.fixture
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A place in this process's memory."""
    url = f"memory://{request.node.name.replace('[', '-').replace(']', '')}/s.zarr"
    yield url
    fsspec.filesystem("memory").store.clear()


def objects(url: str) -> dict[str, bytes]:
    """Return every object below a URL with its bytes, without zarr."""
    system, root = fsspec.url_to_fs(url, use_listings_cache=False)
    return {
        name.removeprefix(root).lstrip("/"): system.cat_file(name) for name in system.find(root)
    }


def flip_object(url: str, key: str) -> None:
    system, root = fsspec.url_to_fs(url, use_listings_cache=False)
    content = bytearray(system.cat_file(f"{root}/{key}"))
    content[-1] ^= 1
    system.pipe_file(f"{root}/{key}", bytes(content))


def test_a_store_in_memory_is_the_store_of_a_folder(workspace, tiny_store, url):
    result = build(workspace, store=url)
    assert (result["path"], result["teacher_forwards"]) == (url, 4 * NUM_SAMPLES)
    assert objects(url) == snapshot(tiny_store.path)
    assert result["bytes"] == sum(map(len, objects(url).values()))
    assert json.loads((workspace / "workspace.json").read_text())["store"] == url
    assert build(workspace, store=url)["teacher_forwards"] == 0
    store = LogitStore.open(url)
    assert store.path == url
    ids = np.random.default_rng(2).permutation(NUM_SAMPLES)
    np.testing.assert_array_equal(store.rows(ids, 3), tiny_store.rows(ids, 3))


def test_a_gap_at_a_url_is_filled(workspace, tiny_store, url):
    build(workspace, store=url)
    place = open_zarr_store(url, read_only=False)
    for key in ("views/1/rows/c/3/0", "stats/top1/c/8", "views/2/complete"):
        delete_key(place, key)
    assert build(workspace, store=url)["teacher_forwards"] == 2 * 8
    assert objects(url) == snapshot(tiny_store.path)


def test_a_store_at_a_url_is_verified_and_repaired(workspace, tiny_store, url, tmp_path):
    build(workspace, store=url)
    assert check(workspace)["store"] == url  # the last one built
    flip_object(url, "views/2/rows/c/4/0")
    with pytest.raises(
        CacheCorruptError, match=r"memory://.* has 1 damaged files: views/2/rows/c/4/0"
    ):
        check(workspace, store=url)
    with pytest.raises(CacheCorruptError, match=r"views/2/rows/c/4/0 of memory://.*s\.zarr has a"):
        LogitStore.open(url).logits([33], 2)
    assert check(workspace, store=url, repair=True)["repaired"] == ["views/2/rows/c/4/0"]
    assert objects(url) == snapshot(tiny_store.path)
    assert export(ExportOptions(tmp_path / "v.npz", store=url)).to_json()["rows"] == NUM_SAMPLES


def test_a_student_is_trained_from_a_url(workspace, tiny_workspace, url):
    for file in tiny_workspace.glob("val.*"):
        (workspace / file.name).symlink_to(file)
    build(workspace, store=url, views=1, codec="lowrank(k=2, r=2)")
    options: dict[str, Any] = {"subset": "full", "model": "resnet8", "epochs": 1, "device": "cpu"}
    result = train(TrainOptions(workspace=workspace, store=url, num_workers=1, **options)).to_json()
    assert (result["samples"], result["teacher_forwards"]) == (NUM_SAMPLES, 0)


def test_a_url_without_a_store_says_so(url):
    assert not exists(url)
    with pytest.raises(FileNotFoundError, match=r"memory://.* does not exist.*build-logits"):
        LogitStore.open(url)


@pytest.mark.parametrize("url", ["nowhere://bucket/s.zarr", "http4://x/s.zarr"])
def test_a_kind_of_url_that_is_not_known_is_refused(url):
    with pytest.raises(ConfigError, match=rf"{url} cannot be opened: .*kdcache\[s3\]"):
        LogitStore.open(url)


# Keys, in a folder and in memory


@pytest.fixture(params=["folder", "memory"])
def location(request, tmp_path, url):
    return tmp_path / "s.zarr" if request.param == "folder" else url


def test_keys_are_written_read_listed_and_removed(location):
    place = open_zarr_store(location, read_only=False)
    assert list_keys(place) == []
    for key in ("b/2", "a", "b/1/x", "bc/1"):
        write_key(place, key, key.encode())
    assert list_keys(place) == ["a", "b/1/x", "b/2", "bc/1"]
    assert list_keys(place, "b/") == ["b/1/x", "b/2"]
    assert read_key(place, "b/2") == b"b/2"
    assert read_key(place, "gone") is None
    assert (has_key(place, "b/1/x"), has_key(place, "gone")) == (True, False)
    assert size_bytes(location) == sum(map(len, ["a", "b/1/x", "b/2", "bc/1"]))
    delete_key(place, "b/2")
    delete_key(place, "b/2")
    assert list_keys(place, "b/") == ["b/1/x"]


def test_what_another_process_is_writing_is_not_counted(tmp_path):
    write_key(open_zarr_store(tmp_path / "s.zarr", read_only=False), "a/0", b"123")
    (tmp_path / "s.zarr/a/.1.77@host.partial").write_bytes(b"12345678")
    assert size_bytes(tmp_path / "s.zarr") == 3


def test_only_a_store_is_removed(location):
    place = open_zarr_store(location, read_only=False)
    write_key(place, "thesis.tex", b"chapter 1")
    with pytest.raises(ConfigError, match=r"holds 1 files and no logit store.*thesis\.tex"):
        delete_store(location)
    assert read_key(place, "thesis.tex") == b"chapter 1"
    delete_key(place, "thesis.tex")
    for key in ("zarr.json", "sample_ids/zarr.json", "views/0/rows/c/0/0"):
        write_key(place, key, b"x")
    delete_store(location)
    assert list_keys(place) == []
    assert not exists(location)
    delete_store(location)


FOREIGN_GROUP = b'{"zarr_format": 3, "node_type": "group", "attributes": {"kdcach": 1}}'
OUR_GROUP = b'{"zarr_format": 3, "node_type": "group", "attributes": {"kdcache": 1}}'


@pytest.mark.parametrize(
    ("files", "first"),
    [
        ({"zarr.json": FOREIGN_GROUP, "labels/zarr.json": b"{}"}, "2 files and no .* labels/zarr"),
        ({"zarr.json": b"{", "labels/zarr.json": b"{}"}, "2 files and no .* labels/zarr"),
        ({"zarr.json": OUR_GROUP, "labels/notes.txt": b"x"}, "1 files that .* labels/notes"),
        (
            {"zarr.json": OUR_GROUP, "views/0/rows/c/x": b"x"},
            "1 files that .* views/0/rows/c/x",
        ),
        ({"films/one.mkv.partial": b"x"}, r"1 files that .* films/one\.mkv\.partial"),
    ],
)
def test_what_only_looks_like_a_store_is_kept(location, files, first):
    place = open_zarr_store(location, read_only=False)
    for key, content in files.items():
        write_key(place, key, content)
    with pytest.raises(ConfigError, match=f"holds {first}"):
        delete_store(location)
    assert {key: read_key(place, key) for key in list_keys(place, partials=True)} == files


def test_a_removed_store_leaves_no_folder_but_those_that_are_not_its_own(store_path):
    (store_path / "zarr.json").write_bytes(b"not JSON any more")
    (store_path / "views/0/rows/c/3/.0.77@host.partial").write_bytes(b"half")
    (store_path / "views/mine").mkdir()
    delete_store(store_path)
    left = sorted(str(path.relative_to(store_path)) for path in store_path.rglob("*"))
    assert left == ["views", "views/mine"]


def test_overwrite_keeps_what_lies_in_a_store_and_is_not_its_own(workspace, store_path):
    (store_path / "notes.txt").write_text("which teacher this was")
    before = snapshot(store_path)
    with pytest.raises(ConfigError, match=r"1 files that do not belong to .* notes\.txt"):
        build(workspace, overwrite=True)
    assert snapshot(store_path) == before


def test_a_write_that_fails_leaves_no_file_and_names_it(tmp_path):
    place = DurableStore(tmp_path / "s.zarr")
    (tmp_path / "s.zarr/labels").write_bytes(b"in the way")
    with pytest.raises(OSError, match=r"writing: .*labels/zarr\.json"):
        write_key(place, "labels/zarr.json", b"{}")
    assert list(tmp_path.rglob("*.partial")) == []


def test_a_host_that_does_not_answer_is_no_store_that_does_not_exist():
    with pytest.raises(OSError, match=r"127\.0\.0\.1:9") as error:
        LogitStore.open("http://127.0.0.1:9/s.zarr")
    assert not isinstance(error.value, FileNotFoundError)


@pytest.mark.parametrize("endpoint", [None, "http://127.0.0.1:9"])
def test_an_object_store_without_credentials_or_endpoint_is_named(monkeypatch, tmp_path, endpoint):
    """In a process of its own: clients keep what the environment said when they began."""
    if find_spec("s3fs") is None:
        pytest.skip("needs s3fs: pip install 'kdcache[s3]'")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    if endpoint:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    result = kdcache("export", "v.npz", "--store", "s3://here/s.zarr", workspace=tmp_path)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    said = "EndpointConnectionError" if endpoint else "NoCredentialsError"
    assert f"s3://here/s.zarr cannot be reached for zarr.json: {said}: " in result.stderr


# S3, as a server of its own speaks it


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def bucket(tmp_path_factory) -> Iterator[str]:
    """The URL of a bucket on an S3 server of its own, which the environment names."""
    for package in ("moto.server", "s3fs"):
        if find_spec(package.partition(".")[0]) is None:
            pytest.skip(f"needs {package}: pip install 'kdcache[dev]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    log = (tmp_path_factory.mktemp("s3") / "log").open("w+b")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            deadline = time.monotonic() + 120
            while not answers(port):
                assert server.poll() is None, "the S3 server ended"
                assert time.monotonic() < deadline, "the S3 server does not answer"
                time.sleep(0.1)
            with pytest.MonkeyPatch.context() as patch:
                for name, value in environment.items():
                    patch.setenv(name, value)
                fsspec.filesystem("s3", use_listings_cache=False).mkdir("logits")
                yield "s3://logits"
        finally:
            server.terminate()


def test_a_store_on_s3_is_built_by_one_process_and_read_by_another(bucket, workspace, tiny_store):
    url = f"{bucket}/runs/projection.zarr"
    options = ["--views", "3", "--codec", "float32", "--batch-size", "8", "--device", "cpu"]
    built = kdcache(
        *("build-logits", "--teacher", PROJECTION, "--store", url, "--json", *options),
        workspace=workspace,
    )
    assert built.returncode == 0, built.stderr
    assert json.loads(built.stdout)["teacher_forwards"] == 4 * NUM_SAMPLES
    store = LogitStore.open(url)
    ids = np.random.default_rng(3).permutation(NUM_SAMPLES)
    for view in range(4):
        np.testing.assert_array_equal(store.rows(ids, view), tiny_store.rows(ids, view))
    assert objects(url) == snapshot(tiny_store.path)
    assert check(workspace, store=url)["repaired"] == []
    flip_object(url, "scores/margin/c/2")
    with pytest.raises(
        CacheCorruptError, match=r"s3://logits.* 1 damaged files: scores/margin/c/2"
    ):
        check(workspace, store=url)
    assert check(workspace, store=url, repair=True)["repaired"] == ["scores/margin/c/2"]
    assert objects(url) == snapshot(tiny_store.path)


@pytest.mark.usefixtures("bucket")
def test_a_bucket_that_does_not_exist_is_named(workspace):
    with pytest.raises(FileNotFoundError, match=r"s3://gone/s\.zarr does not exist"):
        LogitStore.open("s3://gone/s.zarr")
    with pytest.raises(OSError, match=r"gone|bucket"):
        build(workspace, store="s3://gone/s.zarr")
