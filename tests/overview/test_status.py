"""`kdcache` alone: what the workspace holds, what is stale, and what to run next."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from kdcache.data.beton_manifest import BetonManifest
from kdcache.files import read_json
from kdcache.options import (
    BuildLogitsOptions,
    SelectOptions,
    StatusOptions,
    TrainTeacherOptions,
)
from kdcache.overview.status import status
from kdcache.seals import read_sealed_json, write_sealed_json
from kdcache.selection.select import select
from kdcache.selection.subset import Subset
from kdcache.store.build.build import build_logits
from kdcache.store.format.layout import complete_key
from kdcache.training.train_teacher import train_teacher


def state(workspace: Path) -> dict:
    return status(StatusOptions(workspace=workspace)).to_json()


def wrong(workspace: Path) -> dict[str, str]:
    """Return what is wrong, by name."""
    return {
        name: about["wrong"] for name, about in state(workspace)["holds"].items() if about["wrong"]
    }


def run_of(workspace: Path) -> Path:
    (run,) = (workspace / "runs").glob("resnet8-medium*")
    return run


def test_everything_is_listed_in_the_order_in_which_it_is_made(full_workspace):
    found = state(full_workspace)
    assert list(found["holds"]) == [
        "train.beton",
        "val.beton",
        "teachers/resnet8.safetensors",
        "stores/resnet8.zarr",
        "subsets/medium-0.7.npz",
        f"runs/{run_of(full_workspace).name}",
        "runs/teacher-resnet8",
    ]
    assert [about["kind"] for about in found["holds"].values()] == [
        *("beton", "beton", "teacher", "store", "subset", "run", "run")
    ]
    assert wrong(full_workspace) == {}
    assert found["holds"]["train.beton"]["about"].startswith("72 images of 4 classes")
    assert found["workspace"] == str(full_workspace.resolve())


def test_the_next_command_makes_the_first_missing_thing(workspace):
    assert state(workspace)["next"].startswith("kdcache train with another subset")
    shutil.rmtree(workspace / "runs")
    assert state(workspace)["next"].startswith("kdcache train: ")
    shutil.rmtree(workspace / "subsets")
    assert state(workspace)["next"].startswith("kdcache select --method medium --keep 0.7")
    shutil.rmtree(workspace / "stores")
    (workspace / "workspace.json").unlink()
    assert state(workspace)["next"].startswith("kdcache build-logits --teacher resnet8")
    shutil.rmtree(workspace / "teachers")
    assert state(workspace)["next"].startswith("kdcache train-teacher --model resnet50")
    (workspace / "train.beton").unlink()
    assert state(workspace)["next"].startswith("kdcache pack SOURCE")
    assert state(workspace / "none")["holds"] == {}


def test_an_unfinished_store_or_run_is_continued_first(workspace):
    metrics = run_of(workspace) / "metrics.jsonl"
    metrics.write_text(metrics.read_text().splitlines(keepends=True)[0])
    expected = f"kdcache train --resume --out {run_of(workspace)}, with the same arguments"
    assert state(workspace)["next"].startswith(expected)
    assert wrong(workspace)[f"runs/{run_of(workspace).name}"].startswith("unfinished: 1 of 2 epoch")
    (workspace / "stores/resnet8.zarr" / complete_key(0)).unlink()
    assert "stores/resnet8.zarr is unfinished" in state(workspace)["next"]
    assert wrong(workspace)["stores/resnet8.zarr"].startswith("unfinished: 2 of 3 views")


def test_everything_made_from_other_data_is_stale(workspace):
    about = BetonManifest.load(workspace / "train.beton")
    replace(about, fingerprint="f" * 64).save(workspace / "train.beton")
    found = wrong(workspace)
    assert found.keys() == {
        "teachers/resnet8.safetensors",
        "stores/resnet8.zarr",
        "subsets/medium-0.7.npz",
        f"runs/{run_of(workspace).name}",
        "runs/teacher-resnet8",
    }
    was, now = about.fingerprint[:12], "f" * 12
    expected = (
        f"stale: made from data with the fingerprint {was}, expected that of train.beton, {now}"
    )
    assert set(found.values()) == {expected}
    assert state(workspace)["next"].startswith("kdcache train-teacher")


def test_what_a_replaced_teacher_computed_is_stale(workspace):
    train_teacher(
        TrainTeacherOptions(
            workspace=workspace, model="resnet8", epochs=1, seed=1, num_workers=1, overwrite=True
        )
    )
    found = wrong(workspace)
    assert found.keys() == {"stores/resnet8.zarr", "subsets/medium-0.7.npz"}
    assert "teachers/resnet8.safetensors was trained again since" in found["stores/resnet8.zarr"]
    options = {"workspace": workspace, "overwrite": True}
    build_logits(BuildLogitsOptions(teacher=("resnet8",), views=2, num_workers=1, **options))
    assert wrong(workspace).keys() == {"subsets/medium-0.7.npz"}
    select(SelectOptions(**options))
    assert wrong(workspace) == {}


def test_damaged_files_are_reported_beside_all_others(workspace):
    (workspace / "subsets/medium-0.7.npz").write_bytes(b"PK")
    path = workspace / "stores/resnet8.zarr/zarr.json"
    path.write_text(json.dumps(read_json(path) | {"attributes": {}}))
    found = wrong(workspace)
    assert found.keys() == {"stores/resnet8.zarr", "subsets/medium-0.7.npz"}
    assert all(why.startswith("damaged: ") for why in found.values())
    assert len(state(workspace)["holds"]) == 7


def test_a_store_and_subset_outside_the_workspace_are_listed(workspace, tmp_path):
    subset = Subset.load(workspace / "subsets/medium-0.7.npz")
    elsewhere = tmp_path / "mine.npz"
    subset.save(elsewhere)
    memory = read_sealed_json(workspace / "workspace.json", remedy="")
    url = "s3://bucket/a.zarr"
    write_sealed_json(
        workspace / "workspace.json", memory | {"subset": str(elsewhere), "store": url}
    )
    found = state(workspace)["holds"]
    assert (found[str(elsewhere)]["kind"], found[url]["kind"]) == ("subset", "store")
    assert (found[str(elsewhere)]["wrong"], found[url]["wrong"]) == (None, None)
    elsewhere.unlink()
    assert wrong(workspace) == {str(elsewhere): "damaged: it no longer exists"}


def test_a_teacher_run_does_not_count_as_a_student(workspace):
    shutil.rmtree(run_of(workspace))
    assert state(workspace)["next"].startswith("kdcache train: ")
    shutil.rmtree(workspace / "subsets")
    assert state(workspace)["next"].startswith("kdcache select")


def test_an_unfinished_teacher_is_continued_by_train_teacher(workspace):
    shutil.rmtree(run_of(workspace))
    shutil.rmtree(workspace / "stores")
    shutil.rmtree(workspace / "teachers")
    (workspace / "workspace.json").unlink()
    (workspace / "runs/teacher-resnet8/metrics.jsonl").write_text("")
    name = "runs/teacher-resnet8"
    assert "Run kdcache train-teacher again with the same arguments" in wrong(workspace)[name]
    expected = f"kdcache train-teacher, with the same arguments: {name} is unfinished"
    assert state(workspace)["next"] == expected
