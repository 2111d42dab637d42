"""CIFAR's binary archives, made in the published layout from other pixels.

The published archives themselves need a network and 170 MB; that these are read as torchvision
reads its own is shown on images that both formats were written from.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from kdcache.data.cifar import ARCHIVES, cifar, downloads
from kdcache.data.pack import pack
from kdcache.data.sources import open_source
from kdcache.errors import ConfigError, DatasetError
from kdcache.options import PackOptions

SIZES = {"cifar10": 10, "cifar100": 100}


@pytest.fixture(autouse=True)
def cache_home(tmp_path, monkeypatch):
    """A cache folder of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def batches(kind, count):
    """Return (file name as torchvision has it, labels, pixel planes) of each batch."""
    rng = np.random.default_rng(0)
    names = {
        "cifar10": [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"],
        "cifar100": ["train", "test"],
    }[kind]
    return [
        (
            name,
            rng.integers(0, SIZES[kind], count),
            rng.integers(0, 256, (count, 3072), dtype=np.uint8),
        )
        for name in names
    ]


def class_names(kind):
    return [f"class_{label}" for label in range(SIZES[kind])]


def write_archive(folder, kind, count=4, members=None):
    """Write an archive in the published layout; return it and what is known of it."""
    archive = ARCHIVES[kind]
    files = dict.fromkeys(archive.members, b"")
    for name, labels, planes in batches(kind, count):
        at = next(member for member in files if f"/{name}.bin" in member)
        coarse = np.full((count, archive.label_bytes - 1), 200, dtype=np.uint8)
        records = np.concatenate([coarse, labels[:, None].astype(np.uint8), planes], axis=1)
        files[at] = records.tobytes()
    # The publisher's list ends with an empty line.
    files[archive.names] = "\n".join([*class_names(kind), "", ""]).encode()
    files |= members or {}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / archive.url.rpartition("/")[2]
    with tarfile.open(path, "w:gz") as file:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    md5 = hashlib.md5(path.read_bytes()).hexdigest()  # noqa: S324  (the publisher's choice)
    return path, dataclasses.replace(archive, md5=md5)


def torchvisions(kind, root, *, train, count=4):
    """Return torchvision's data set of the same images, from files in its own layout."""
    base = {"cifar10": CIFAR10, "cifar100": CIFAR100}[kind]
    labels_key, names_key = {
        "cifar10": ("labels", "label_names"),
        "cifar100": ("fine_labels", "fine_label_names"),
    }[kind]
    folder = root / base.base_folder
    folder.mkdir(parents=True, exist_ok=True)
    written = {
        name: {"data": planes, labels_key: labels.tolist()}
        for name, labels, planes in batches(kind, count)
    }
    meta = {"filename": base.meta["filename"], "key": names_key, "md5": None}
    written[meta["filename"]] = {names_key: class_names(kind)}
    for name, content in written.items():
        (folder / name).write_bytes(pickle.dumps(content))
    unchecked = {
        "train_list": [[name, None] for name, _ in base.train_list],
        "test_list": [[name, None] for name, _ in base.test_list],
        "meta": meta,
    }
    return type("Unchecked", (base,), unchecked)(root, train=train)


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("split", ["train", "val"])
def test_cifar_is_read_as_torchvision_reads_it(tmp_path, kind, split):
    path, archive = write_archive(tmp_path, kind)
    source = cifar(archive, path)
    expected = torchvisions(kind, tmp_path / "torchvision", train=split == "train")
    found = source.splits[split]
    assert source.class_names == expected.classes
    assert found.labels.tolist() == expected.targets
    assert len(found.labels) == {"cifar10": 20, "cifar100": 4}[kind] if split == "train" else 4
    for position, (image, _) in enumerate(expected):
        pixels = np.asarray(Image.open(io.BytesIO(found.read(position))))
        assert np.array_equal(pixels, np.asarray(image))


def test_cifar_is_packed_with_its_test_split_for_evaluation(tmp_path, monkeypatch):
    path, archive = write_archive(tmp_path, "cifar10")
    monkeypatch.setitem(ARCHIVES, "cifar10", archive)
    result = pack(PackOptions(str(path), workspace=tmp_path / "w", num_workers=1)).to_json()
    assert (result["train"]["samples"], result["val"]["samples"]) == (20, 4)
    # By its name it is found again, without the archive and without a network.
    path.unlink()
    again = pack(PackOptions("cifar10", workspace=tmp_path / "w", num_workers=1)).to_json()
    assert again == result


def test_the_archive_is_kept_unpacked_once(tmp_path):
    path, archive = write_archive(tmp_path / "mine", "cifar100")
    split = cifar(archive, path).splits["train"]
    folder = downloads() / f"cifar100-{archive.md5[:8]}"
    assert sorted(str(file.relative_to(folder)) for file in folder.rglob("*.*")) == sorted(
        archive.members
    )
    assert [entry.name for entry in downloads().iterdir()] == [folder.name]
    assert path.exists()
    copy = pickle.loads(pickle.dumps(split))  # noqa: S301  (our own)
    assert (copy.read(1), copy.name(1)) == (split.read(1), "cifar100[1]")
    assert len(pickle.dumps(split)) < 2000  # pixels stay in the file


def test_an_archive_of_other_bytes_is_refused_before_it_is_opened(tmp_path):
    path, archive = write_archive(tmp_path, "cifar10")
    with pytest.raises(DatasetError, match=f"has the md5 {archive.md5}, expected c32a1d4ab5d03f12"):
        open_source(str(path))
    assert not downloads().exists()


def test_an_archive_with_a_link_in_it_leaves_nothing(tmp_path):
    path, archive = write_archive(tmp_path, "cifar10")
    with tarfile.open(path, "w:gz") as file:
        for name in archive.members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            file.addfile(info)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()  # noqa: S324
    with pytest.raises((DatasetError, KeyError)):
        cifar(dataclasses.replace(archive, md5=md5), path)
    assert list(downloads().iterdir()) == []


def test_without_a_network_the_remedy_is_told():
    # Nothing listens at port 9 of this machine.
    name = ARCHIVES["cifar10"].url.rpartition("/")[2]
    archive = dataclasses.replace(ARCHIVES["cifar10"], url=f"http://127.0.0.1:9/{name}")
    with pytest.raises(DatasetError, match=f"cannot be downloaded .*kdcache pack FOLDER/{name}"):
        cifar(archive)


def test_an_archive_is_downloaded_from_a_server_once(tmp_path, served):
    path, archive = write_archive(tmp_path / "server", "cifar100")
    archive = dataclasses.replace(archive, url=f"{served(path.parent)}/{path.name}")
    source = cifar(archive)
    path.unlink()
    assert (
        cifar(archive).identity == source.identity == {"kind": "cifar100", "content": archive.md5}
    )
    assert [entry.is_dir() for entry in downloads().iterdir()] == [True]


def test_a_download_of_other_bytes_is_refused_now_and_later(tmp_path, served):
    path, archive = write_archive(tmp_path / "server", "cifar10")
    stated = "0" * 32
    archive = dataclasses.replace(archive, url=f"{served(path.parent)}/{path.name}", md5=stated)
    for _ in range(2):  # downloaded, and found
        with pytest.raises(DatasetError, match=f"expected {stated} as published"):
            cifar(archive)
    assert [entry.name for entry in downloads().iterdir()] == [path.name]  # nothing is unpacked


def test_records_of_another_length_are_refused(tmp_path):
    path, archive = write_archive(tmp_path, "cifar10")
    cifar(archive, path)
    (folder,) = downloads().iterdir()
    records = next(folder.rglob("data_batch_3.bin"))
    records.write_bytes(records.read_bytes()[:-1])
    with pytest.raises(DatasetError, match=r"data_batch_3\.bin has .* expected records of 3,073"):
        cifar(archive, path)


def test_torchvisions_folder_of_pickles_is_not_opened(tmp_path):
    torchvisions("cifar10", tmp_path, train=True)
    for source in (tmp_path, tmp_path / "cifar-10-batches-py"):
        with pytest.raises(ConfigError, match=r"holds pickles.* kdcache pack cifar10"):
            open_source(str(source))


def test_another_compressed_archive_is_asked_wrongly(tmp_path):
    (tmp_path / "images.tar.gz").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"images\.tar\.gz, expected .*cifar-10-binary\.tar\.gz"):
        open_source(str(tmp_path / "images.tar.gz"))


@pytest.fixture
def served():
    """Return a function that serves a folder over HTTP and returns its address."""
    import functools
    import http.server
    import threading

    servers = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    def serve(folder):
        handler = functools.partial(Quiet, directory=str(folder))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()
