"""A beton with the kept samples only: the same ids, bytes, pixels, rows and student."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from kdcache.data.beton import open_beton
from kdcache.data.beton_manifest import BetonManifest, fingerprint
from kdcache.data.digests import DECODED
from kdcache.data.pack import pack
from kdcache.data.repack import repack
from kdcache.errors import CacheMismatchError, ConfigError, DatasetError
from kdcache.loader.distill import DistillLoader
from kdcache.options import PackOptions, SelectOptions, TrainOptions
from kdcache.reader.batches import view_pixels
from kdcache.selection.select import select
from kdcache.selection.subset import Subset
from kdcache.store.format.layout import open_group
from kdcache.store.format.location import open_zarr_store
from kdcache.store.format.shards import read_whole, write_shard
from kdcache.training.train import train
from tests.workspaces import copy_workspace, metrics, without_times

KEPT = np.array([3, 4, 11, 30, 31, 32, 50, 71])


def pack_subset(workspace: Path, subset: str = "medium-0.4", **options: Any) -> dict[str, Any]:
    return pack(PackOptions(workspace=workspace, subset=subset, **options)).to_json()


@pytest.fixture
def workspace(tiny_workspace, tiny_store, tmp_path):
    """A copy of the tiny workspace with its store and a selected subset, medium-0.4."""
    assert tiny_store.path.is_relative_to(tiny_workspace)
    root = copy_workspace(tiny_workspace, tmp_path / "workspace")
    select(SelectOptions(workspace=root, keep=0.4))
    return root


@pytest.mark.parametrize("source", ["tiny_beton", "photo_beton"], ids=["raw", "jpeg"])
def test_every_kept_sample_has_its_id_label_bytes_and_pixels(source, request, tmp_path):
    full = open_beton(request.getfixturevalue(source))
    ids = KEPT[: np.searchsorted(KEPT, len(full))]
    repack(full, ids, tmp_path / "few.beton")
    few = open_beton(tmp_path / "few.beton")
    at = full.positions(ids)
    assert few.sample_ids.tolist() == ids.tolist()
    assert few.labels.tolist() == full.labels[at].tolist()
    assert few.sizes.tolist() == full.sizes[at].tolist()
    assert few.lengths.tolist() == full.lengths[at].tolist()
    contents = [np.fromfile(beton.path, np.uint8) for beton in (few, full)]
    for here, there in enumerate(at):
        start, end = few.pointers[here], few.pointers[here] + few.lengths[here]
        first = full.pointers[there]
        assert np.array_equal(
            contents[0][start:end], contents[1][first : first + full.lengths[there]]
        )
    for view in (0, 2):
        options = (full.manifest.policy, 7, view, ids[::-1])
        assert np.array_equal(view_pixels(few.path, *options), view_pixels(full.path, *options))


def test_the_manifest_tells_whose_samples_they_are(tiny_beton, tmp_path):
    full = open_beton(tiny_beton)
    manifest = repack(full, KEPT, tmp_path / "few.beton")
    assert manifest == BetonManifest.load(tmp_path / "few.beton")
    assert (manifest.samples, manifest.is_subset, full.manifest.is_subset) == (8, True, False)
    assert manifest.data_fingerprint == full.manifest.fingerprint == full.manifest.data_fingerprint
    digests = np.load(tiny_beton.with_suffix(".digests.npy"))[KEPT]
    assert np.array_equal(np.load(tmp_path / "few.digests.npy"), digests)
    names = manifest.class_names
    decoded = digests[:, DECODED]
    assert manifest.fingerprint == fingerprint(names, KEPT, full.labels[KEPT], decoded)
    for field in ("mean", "std", "policy", "image_size", "classes", "class_names", "write_mode"):
        assert getattr(manifest, field) == getattr(full.manifest, field)


def test_all_samples_give_the_bytes_of_the_full_beton(photo_beton, tmp_path):
    repack(open_beton(photo_beton), np.arange(24), tmp_path / "all.beton")
    for name in (".beton", ".digests.npy"):
        found = (tmp_path / "all").with_suffix(name).read_bytes()
        assert found == photo_beton.with_suffix(name).read_bytes()


def test_a_sample_that_is_not_there_is_refused(tiny_beton, tmp_path):
    with pytest.raises(DatasetError, match=r"sample id 72 \(and 0 more\) is not in"):
        repack(open_beton(tiny_beton), np.array([3, 72]), tmp_path / "few.beton")
    assert list(tmp_path.iterdir()) == []


def test_a_beton_of_a_subset_without_its_manifest_is_mended_as_it_says(workspace):
    path = Path(pack_subset(workspace)["train"]["path"])
    before = {suffix: path.with_suffix(suffix).read_bytes() for suffix in (".beton", ".json")}
    path.with_suffix(".json").unlink()
    with pytest.raises(DatasetError, match=r"json is missing.*Run: (.*) --overwrite ") as error:
        open_beton(path)
    words = shlex.split(str(error.value).partition("Run: ")[2])
    command = ["kdcache", "pack", "--subset", str(path.with_suffix(".npz")), "--overwrite"]
    assert words == [*command, "--workspace", str(path.parents[1])]
    pack_subset(workspace, words[3], overwrite=True)
    assert {suffix: path.with_suffix(suffix).read_bytes() for suffix in before} == before


def test_bytes_that_were_damaged_are_not_copied(tiny_beton, tmp_path):
    for suffix in (".beton", ".json", ".digests.npy", ".names.parquet"):
        shutil.copy(tiny_beton.with_suffix(suffix), tmp_path)
    full = open_beton(tmp_path / "train.beton")
    with full.path.open("r+b") as file:
        file.seek(int(full.pointers[30]) + 5)
        value = file.read(1)[0]
        file.seek(int(full.pointers[30]) + 5)
        file.write(bytes([value ^ 1]))
    with pytest.raises(DatasetError, match=r"bytes of sample 30 in .*train\.beton differ from"):
        repack(full, KEPT, tmp_path / "few.beton")
    assert not list(tmp_path.glob("few*"))
    repack(full, KEPT[:3], tmp_path / "few.beton")


def test_a_loader_reads_the_same_from_it_as_from_the_full_beton(tiny_beton, tiny_store, tmp_path):
    repack(open_beton(tiny_beton), KEPT, tmp_path / "few.beton")

    def batches(beton: Path, subset: np.ndarray | None) -> list[tuple]:
        loader = DistillLoader(beton, tiny_store, subset, 3, seed=5, num_workers=1)
        found = [
            (
                batch.sample_ids.tolist(),
                batch.labels.tolist(),
                batch.images.clone().numpy().tobytes(),
                batch.rows.logits().numpy().tobytes(),
            )
            for epoch in range(2)
            for batch in loader.epoch(epoch)
        ]
        loader.close()
        return found

    wanted = batches(tiny_beton, KEPT)
    assert len(wanted) == 6
    assert batches(tmp_path / "few.beton", KEPT) == wanted
    assert batches(tmp_path / "few.beton", None) == wanted
    assert batches(tmp_path / "few.beton", KEPT[2:5]) == batches(tiny_beton, KEPT[2:5])
    with pytest.raises(DatasetError, match=r"sample id 5 \(and 0 more\) is not in .*few\.beton"):
        batches(tmp_path / "few.beton", np.array([3, 5]))


# The command


def test_the_beton_lies_beside_its_subset(workspace):
    result = pack_subset(workspace)
    path = workspace / "subsets" / "medium-0.4.beton"
    assert result == {
        "fingerprint": BetonManifest.load(path).fingerprint,
        "train": {"samples": 29, "classes": 4, "path": str(path.resolve())},
        "val": None,
        "skipped": 0,
    }
    subset = Subset.load(workspace / "subsets" / "medium-0.4.npz")
    assert open_beton(path).sample_ids.tolist() == subset.sample_ids.tolist()


def test_a_second_time_it_is_up_to_date(workspace, caplog):
    first = pack_subset(workspace)
    before = {path: path.stat().st_ino for path in (workspace / "subsets").iterdir()}
    with caplog.at_level("INFO", logger="kdcache"):
        assert pack_subset(workspace) == first
    assert "up to date" in caplog.text
    assert {path: path.stat().st_ino for path in (workspace / "subsets").iterdir()} == before


def test_a_student_from_it_is_the_student_from_the_full_beton(workspace):
    options = {"workspace": workspace, "epochs": 2, "num_workers": 1}
    full = train(
        TrainOptions(**options, subset="medium-0.4", out=workspace / "runs/full")
    ).to_json()
    pack_subset(workspace)
    for path in workspace.glob("train.*"):
        path.unlink()
    few = train(TrainOptions(**options, subset="medium-0.4", out=workspace / "runs/few")).to_json()
    lines = [without_times(metrics(run["path"])) for run in (full, few)]
    assert len(lines[0]) > 1
    assert lines[0] == lines[1]
    weights = [load_file(Path(run["path"], "last.safetensors")) for run in (full, few)]
    for name, value in weights[0].items():
        assert np.array_equal(value, weights[1][name])
    assert few["teacher_forwards"] == 0
    configs = [json.loads(Path(run["path"], "config.json").read_text()) for run in (full, few)]
    assert configs[0]["config"] == configs[1]["config"]


def test_training_refuses_a_beton_of_another_selection(workspace):
    pack_subset(workspace)
    chosen = SelectOptions(
        workspace=workspace, method="hard", keep=0.4, out=workspace / "subsets/medium-0.4.npz"
    )
    select(SelectOptions(**(vars(chosen) | {"overwrite": True})))
    message = r"medium-0\.4\.beton holds 29 samples, expected the 29 of .*--overwrite"
    with pytest.raises(CacheMismatchError, match=message):
        train(TrainOptions(workspace=workspace, epochs=1, subset="medium-0.4"))
    with pytest.raises(CacheMismatchError, match=message):
        pack_subset(workspace)
    pack_subset(workspace, overwrite=True)
    train(TrainOptions(workspace=workspace, epochs=1, subset="medium-0.4", num_workers=1))


def test_a_beton_of_other_data_is_refused(workspace):
    pack_subset(workspace)
    path = workspace / "subsets" / "medium-0.4.json"
    about = BetonManifest.load(path.with_suffix(".beton"))
    made_from = about.made_from | {"parent": "f" * 64}
    replace(about, made_from=made_from).save(path.with_suffix(".beton"))
    with pytest.raises(CacheMismatchError, match=f"medium-0.4.npz was .* expected {'f' * 12}"):
        train(TrainOptions(workspace=workspace, epochs=1, subset="medium-0.4"))
    with pytest.raises(CacheMismatchError, match=f"parent is {'f' * 12}, .*overwrite"):
        pack_subset(workspace)
    with pytest.raises(CacheMismatchError, match=f"expected {'f' * 12}"):
        DistillLoader(path.with_suffix(".beton"), workspace / "stores/projection.zarr")


def test_pixels_that_this_machine_decodes_otherwise_are_noticed_from_it_too(workspace):
    pack_subset(workspace)
    path = workspace / "stores/projection.zarr"
    group, _ = open_group(open_zarr_store(path, read_only=False), path=str(path))
    write_shard(group, "pixel_probe", 0, read_whole(group, "pixel_probe") ^ 1)
    with pytest.raises(CacheMismatchError, match=r"(\d+) of \1 probed views are decoded to other"):
        train(TrainOptions(workspace=workspace, epochs=1, subset="medium-0.4", num_workers=1))


def test_where_no_probed_sample_is_kept_the_user_is_told(workspace, caplog):
    from kdcache.reader.probe import probe_ids

    others = np.setdiff1d(np.arange(72), probe_ids(np.arange(72)))[:20]
    Subset(others).save(workspace / "subsets/others.npz")
    pack_subset(workspace, "others")
    with caplog.at_level("WARNING", logger="kdcache"):
        train(TrainOptions(workspace=workspace, epochs=1, subset="others", num_workers=1))
    assert "others.beton holds none of the 16 samples whose pixels" in caplog.text


def test_a_subset_of_other_data_is_not_packed(workspace):
    Subset(np.arange(9), {"data_fingerprint": "e" * 64}).save(workspace / "subsets/other.npz")
    with pytest.raises(CacheMismatchError, match=rf"other\.npz was selected .* {'e' * 12}"):
        pack_subset(workspace, "other")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "source and subset are both missing, expected one of them"),
        ({"source": "digits", "subset": "a"}, "source and subset are both given, expected one"),
        ({"subset": "a", "max_resolution": 9}, "max_resolution=9: expected a SOURCE"),
        ({"subset": "a", "seed": 1}, "seed=1: expected a SOURCE"),
    ],
    ids=["neither", "both", "resolution", "seed"],
)
def test_a_source_and_a_subset_exclude_each_other(options, message):
    with pytest.raises(ConfigError, match=message):
        PackOptions(**options)


def test_the_full_data_is_not_a_subset_to_pack(workspace):
    with pytest.raises(ConfigError, match="subset=full: expected a subset"):
        pack_subset(workspace, "full")
    with pytest.raises(ConfigError, match=r"subset=hard-0\.1: "):
        pack_subset(workspace, "hard-0.1")
