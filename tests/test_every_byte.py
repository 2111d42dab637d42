"""One changed byte anywhere in a finished workspace: verify finds it and names the file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import kdcache
from kdcache.errors import KDCacheError

DRAWS = 30


@pytest.fixture(scope="module")
def workspace(tiny_folder, tmp_path_factory) -> Path:
    """A workspace with every kind of file."""
    root = tmp_path_factory.mktemp("every-byte") / "w"
    alone = {"num_workers": 1, "device": "cpu"}
    kdcache.pack(tiny_folder, workspace=root, val_fraction=0.25, num_workers=1)
    kdcache.train_teacher(root, model="resnet8", epochs=1, **alone)
    kdcache.build_logits(root, views=1, codec="lowrank(k=2, r=2)", features=True, **alone)
    kdcache.select(root, keep=0.5)
    kdcache.pack(subset="medium-0.5", workspace=root)
    kdcache.build_logits(root, views=1, subset="medium-0.5", **alone)
    kdcache.train(root, model="resnet8", epochs=2, subset="medium-0.5", ema=0.9, **alone)
    kdcache.verify(root)
    return root


def files_of(workspace: Path) -> list[Path]:
    """Return all files that hold data; a lock file holds the number of a process."""
    files = (path for path in workspace.rglob("*") if path.is_file())
    return sorted(path for path in files if path.suffix != ".lock")


def shown_name(workspace: Path, file: Path) -> str:
    """Return the part of a file's path that a message must hold."""
    name = str(file.relative_to(workspace))
    return name.partition(".zarr/")[2] or name


def flips(workspace: Path, seed: int, count: int) -> Iterator[tuple[Path, int, int]]:
    """Yield (file, offset, bits to change); each kind of file is drawn equally often."""
    draw = np.random.default_rng(seed)
    kinds: dict[str, list[Path]] = {}
    for file in files_of(workspace):
        kinds.setdefault(f"{file.relative_to(workspace).parts[0]}{file.suffix}", []).append(file)
    names = sorted(kinds)
    for _ in range(count):
        files = kinds[names[draw.integers(len(names))]]
        file = files[draw.integers(len(files))]
        yield file, int(draw.integers(file.stat().st_size)), int(draw.integers(1, 256))


def unseen(workspace: Path, seed: int, count: int) -> list[object]:
    """Return the flips that verify does not find, or finds in another file."""
    missed: list[object] = []
    for file, place, bits in flips(workspace, seed, count):
        content = file.read_bytes()
        changed = bytearray(content)
        changed[place] ^= bits
        with file.open("r+b") as damaged:  # in place: other names of a linked file change as well
            damaged.write(changed)
        try:
            kdcache.verify(workspace)
            missed.append((file, place, bits, "not found"))
        except (KDCacheError, OSError) as error:
            if shown_name(workspace, file) not in str(error):
                missed.append((file, place, bits, str(error)))
        finally:
            with file.open("r+b") as whole:
                whole.write(content)
    return missed


def test_a_changed_byte_of_any_file_is_found_and_the_file_is_named(workspace):
    assert unseen(workspace, 0, DRAWS) == []
    kdcache.verify(workspace)


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(1, 11))
def test_a_changed_byte_of_any_file_is_found_again_and_again(workspace, seed):
    assert unseen(workspace, seed, DRAWS) == []


@pytest.mark.parametrize(
    "pattern",
    [
        "train.names.parquet",
        "train.digests.npy",
        "val.beton",
        "subsets/*.json",
        "stores/*/zarr.json",
    ],
)
def test_a_lost_file_is_found_and_named(workspace, pattern):
    file = next(workspace.glob(pattern))
    content = file.read_bytes()
    file.unlink()
    try:
        with pytest.raises((KDCacheError, OSError), match=file.name):
            kdcache.verify(workspace)
    finally:
        file.write_bytes(content)


def test_files_of_two_splits_that_changed_places_are_found(workspace):
    def swap() -> None:
        for train in workspace.glob("train.*"):
            val = train.with_name(train.name.replace("train", "val"))
            aside = train.with_name("aside")
            train.rename(aside)
            val.rename(train)
            aside.rename(val)

    swap()
    try:
        with pytest.raises(KDCacheError, match=r"train\.beton holds the split val, expected train"):
            kdcache.verify(workspace)
    finally:
        swap()
