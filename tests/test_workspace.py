"""What a workspace remembers, and what its names stand for."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from kdcache.errors import ConfigError
from kdcache.workspace import Workspace, teacher_name


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_a_new_workspace_remembers_nothing(tmp_path):
    assert Workspace(tmp_path / "new").recall("store") is None
    assert not (tmp_path / "new").exists()


def test_the_last_one_of_each_kind_is_remembered(tmp_path):
    workspace = Workspace(tmp_path)
    workspace.remember("store", touch(workspace.store("first")))
    workspace.remember("subset", touch(workspace.subset("hard-0.5")))
    workspace.remember("store", touch(workspace.store("second")))
    assert workspace.recall("store") == workspace.store("second").resolve()
    assert workspace.recall("subset") == workspace.subset("hard-0.5").resolve()


def note(root: str, what: str) -> None:
    for number in range(20):
        Workspace(Path(root)).remember(what, f"memory://{what}/{number}")  # type: ignore[arg-type]


def test_two_processes_that_note_at_once_lose_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    others = [context.Process(target=note, args=(str(tmp_path), what)) for what in ("run", "store")]
    for other in others:
        other.start()
    note(str(tmp_path), "subset")
    for other in others:
        other.join(60)
    for what in ("run", "store", "subset"):
        assert Workspace(tmp_path).recall(what) == f"memory://{what}/19"


def test_a_workspace_that_was_moved_keeps_its_memory(tmp_path):
    before = Workspace(tmp_path / "before")
    outside = touch(tmp_path / "elsewhere/mine.npz")
    before.remember("store", touch(before.store("mine")))
    before.remember("subset", outside)
    before.root.rename(tmp_path / "after")
    after = Workspace(tmp_path / "after")
    assert after.require_store(None) == after.store("mine").resolve()
    assert after.require_subset(None) == outside.resolve()


def test_what_was_remembered_but_is_gone_is_not_used(tmp_path):
    workspace = Workspace(tmp_path)
    workspace.remember("store", touch(workspace.store("mine")))
    workspace.remember("subset", touch(workspace.subset("mine")))
    workspace.store("mine").unlink()
    workspace.subset("mine").unlink()
    with pytest.raises(ConfigError, match=r"mine\.zarr does not exist"):
        workspace.require_store(None)
    with pytest.raises(ConfigError, match="nothing is selected yet"):
        workspace.require_subset(None)


def test_a_subset_is_named_given_by_path_or_left_out_for_all_data(tmp_path):
    workspace = Workspace(tmp_path)
    named, elsewhere = touch(workspace.subset("hard-0.5")), touch(tmp_path / "mine.npz")
    assert workspace.require_subset("hard-0.5") == named
    assert workspace.require_subset(str(elsewhere)) == elsewhere
    assert workspace.require_subset("full") is None
    with pytest.raises(ConfigError, match=r"subset=easy-0\.5"):
        workspace.require_subset("easy-0.5")


@pytest.mark.parametrize(
    ("teacher", "name"),
    [
        ("resnet50", "resnet50"),
        ("a/b/r50.safetensors", "r50"),
        ("a.b/r50", "r50"),
        ("package.module:callable", "callable"),
        ("resnet50.IMAGENET1K_V1", "resnet50.IMAGENET1K_V1"),
        ("timm:resnet18", "timm-resnet18"),
        ("timm:resnet18.a1_in1k", "timm-resnet18.a1_in1k"),
        ("timm:hf-hub:owner/model.tag@v1", "timm-owner-model.tag@v1"),
        ("timm:local-dir:/a/b/model", "timm-model"),
        ("resnet50+timm:vit_b", "resnet50+timm-vit_b"),
        ("a/b+c.safetensors", "b+c"),
    ],
)
def test_a_store_is_named_after_its_teacher(teacher, name):
    assert teacher_name(teacher) == name


def test_a_teacher_that_is_still_being_written_is_no_choice(tmp_path):
    workspace = Workspace(tmp_path)
    touch(workspace.teacher("whole"))
    touch(tmp_path / "teachers/.torn.safetensors.17.partial")
    assert workspace.require_teachers(()) == ("whole",)
    assert workspace.require_teachers(("a:b", "c")) == ("a:b", "c")
