"""Class orders drawn at random: every sample gets the label of its own class, or is refused."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest

from kdcache.data.beton import open_beton
from kdcache.data.sources import open_source
from kdcache.errors import DatasetError, TeacherError
from kdcache.teacher.class_names import require_same_names
from tests.conftest import kdcache
from tests.data.source_files import png, value_of, write_parquet

NAMES = ["ant", "bee", "cat", "dog", "eel", "fly", "gnu", "hen"]
NUMBERS = ["3", "12", "1", "20", "4", "100", "7", "10"]
PNGS = [png(grey) for grey in range(256)]


def draw_classes(rng, pool):
    """Return some of the names in any order; sometimes one has another name."""
    names = rng.permutation(pool)[: rng.integers(2, len(pool) + 1)].tolist()
    if rng.random() < 0.1 and "renamed" not in names:
        names[rng.integers(len(names))] = "renamed"
    return names


def draw_samples(rng, names, greys):
    """Return (grey, label) of a few samples, and label -> name."""
    count = int(rng.integers(1, 5))
    return [(next(greys), int(rng.integers(len(names)))) for _ in range(count)]


def write_part(path, samples, names, kind):
    """Write samples of one split as Parquet, as a tar file with classes.txt, or as folders."""
    if kind == "parquet":
        write_parquet(path / "0.parquet", samples, names=names)
        return
    path.mkdir(parents=True)
    if kind == "folder":
        for name in names:
            (path / name).mkdir()
        for grey, label in samples:
            (path / names[label] / f"{grey}.png").write_bytes(PNGS[grey])
        return
    (path / "classes.txt").write_text("\n".join(names) + "\n")
    with tarfile.open(path / "0.tar", "w") as archive:
        for grey, label in samples:
            for name, content in ((f"{grey}.png", PNGS[grey]), (f"{grey}.cls", b"%d" % label)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


class Drawn:
    """A data set whose parts number their classes each in its own way."""

    def __init__(self, seed, root):
        rng = np.random.default_rng(seed)
        greys = iter(range(1, 256))
        pool = NUMBERS if rng.random() < 0.25 else NAMES
        self.class_of = {}
        self.trained = set()
        self.val_source = None
        kind = ["parquet", "parquet", "tar", "folder"][rng.integers(4)]
        if kind == "folder":
            names = draw_classes(rng, pool)
            samples = [(next(greys), label) for label in range(len(names))]
            self._add(root / "source" / "train", samples, names, kind, is_train=True)
        else:
            for shard in range(rng.integers(1, 3)):
                names = draw_classes(rng, pool)
                place = root / "source" / "train" / f"part{shard}"
                samples = draw_samples(rng, names, greys)
                self._add(place, samples, names, kind, is_train=True)
        names = draw_classes(rng, sorted(self.trained) if rng.random() < 0.8 else pool)
        samples = draw_samples(rng, names, greys)
        is_apart = rng.random() < 0.3
        if is_apart:
            kind = ["parquet", "tar"][rng.integers(2)]
            self.val_source = root / "other"
        self._add(self.val_source or root / "source" / "val", samples, names, kind, is_train=False)
        self.source = root / "source"
        val_classes = set(names) if kind == "folder" else {names[label] for _, label in samples}
        self.is_known = val_classes <= self.trained
        self.rng = rng

    def _add(self, path, samples, names, kind, *, is_train):
        write_part(path, samples, names, kind)
        self.class_of |= {grey: names[label] for grey, label in samples}
        if is_train:
            self.trained |= set(names)


def require_own_names(drawn, source):
    """Every sample has the label of its own class's name."""
    found = {}
    for split in source.splits.values():
        for position, label in enumerate(split.labels.tolist()):
            found[value_of(split.read(position))] = source.class_names[label]
    assert found == drawn.class_of


def require_teachers_order(drawn, names):
    """A teacher with another order or other names is refused; with the same, it is accepted."""
    theirs = drawn.rng.permutation(names).tolist()
    if drawn.rng.random() < 0.5:
        theirs = list(names)
    if drawn.rng.random() < 0.2:
        theirs[0] = "renamed"
    try:
        assert require_same_names("t", theirs, names) in (True, False)
    except TeacherError:
        assert theirs != list(names)
        return
    numbers = all(name.isdigit() for name in names)
    assert theirs == list(names) or numbers != all(name.isdigit() for name in theirs)


@pytest.mark.parametrize("block", range(10))
def test_labels_follow_the_names_of_their_classes(block, tmp_path):
    refused = 0
    for seed in range(100 * block, 100 * block + 100):
        drawn = Drawn(seed, tmp_path / str(seed))
        val_source = drawn.val_source and str(drawn.val_source)
        try:
            source = open_source(str(drawn.source), val_source=val_source)
        except DatasetError:
            if drawn.is_known:
                raise
            refused += 1
            continue
        assert drawn.is_known
        require_own_names(drawn, source)
        require_teachers_order(drawn, source.class_names)
    assert 5 < refused < 60


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5000, 5030))
def test_the_command_line_packs_labels_by_name(seed, tmp_path):
    drawn = Drawn(seed, tmp_path)
    words = ["pack", str(drawn.source)]
    words += [] if drawn.val_source is None else ["--val-source", str(drawn.val_source)]
    done = kdcache(*words, workspace=tmp_path / "w")
    assert (done.returncode == 0) == drawn.is_known, done.stderr
    if not drawn.is_known:
        assert done.stderr.splitlines()[-1].startswith("kdcache: ")
        return
    found = {}
    for split in ("train", "val"):
        beton = open_beton(tmp_path / "w" / f"{split}.beton")
        for (_, content, _), label in zip(
            beton.stored(range(len(beton))), beton.labels.tolist(), strict=True
        ):
            found[content[0]] = beton.manifest.class_names[label]
    assert found == drawn.class_of
