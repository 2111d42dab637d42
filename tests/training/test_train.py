"""The two commands that train: what they need, what they leave behind, what they refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kdcache.data.beton import open_beton
from kdcache.data.pack import pack
from kdcache.errors import CacheMismatchError, ConfigError, TeacherError
from kdcache.files import read_json
from kdcache.models.registry import make_model
from kdcache.models.weights import load_weights
from kdcache.options import (
    BuildLogitsOptions,
    EvaluateOptions,
    PackOptions,
    TrainOptions,
    TrainTeacherOptions,
)
from kdcache.seals import write_sealed_json
from kdcache.selection.subset import Subset
from kdcache.store.build.build import build_logits
from kdcache.store.logit_store import LogitStore
from kdcache.training.evaluate import evaluate
from kdcache.training.run_config import read_config
from kdcache.training.train import train
from kdcache.training.train_teacher import train_teacher
from tests.spelled import write_spelled_store
from tests.store.editing import change_manifest, change_values
from tests.training.loops import assert_same_run, options
from tests.workspaces import copy_workspace, metrics

# `kdcache train`


def files(workspace: Path) -> list[str]:
    return sorted(str(path.relative_to(workspace)) for path in workspace.rglob("*"))


def test_a_run_is_named_by_student_subset_and_seed(finished):
    workspace, result = finished
    assert result["path"] == str((workspace / "runs/resnet8-fifty-s0").resolve())
    assert (result["samples"], result["teacher_forwards"]) == (50, 0)


def test_a_second_run_gets_a_folder_of_its_own_and_the_same_student(workspace, finished):
    again = train(options(workspace)).to_json()
    assert Path(again["path"]).name == "resnet8-fifty-s0-2"
    assert_same_run(Path(again["path"]), Path(finished[1]["path"]))


def test_the_seed_decides_the_student(workspace, finished):
    other = train(options(workspace, seed=1)).to_json()
    assert Path(other["path"]).name == "resnet8-fifty-s1"
    mine, _ = load_weights(Path(other["path"]) / "last.safetensors")
    theirs, _ = load_weights(Path(finished[1]["path"]) / "last.safetensors")
    assert not torch.equal(mine["fc.weight"], theirs["fc.weight"])


def test_without_distillation_the_name_says_so_and_no_store_is_needed(
    tiny_workspace, tmp_path, messages
):
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    for file in tiny_workspace.glob("train.*"):
        (workspace / file.name).hardlink_to(file)
    result = train(options(workspace, kd=False, subset="full", epochs=1)).to_json()
    assert Path(result["path"]).name == "resnet8-full-s0-no-kd"
    assert (result["samples"], result["top1"], result["top5"]) == (72, None, None)
    assert metrics(result["path"])[0]["distillation"] is None
    assert any("no KD" in message for message in messages)
    assert any("val.beton does not exist" in message for message in messages)


def test_a_store_of_the_clean_view_alone_is_warned_about(workspace, messages):
    beton = open_beton(workspace / "train.beton")
    write_spelled_store(workspace / "stores/clean.zarr", beton, num_views=0)
    train(options(workspace, teacher="clean", epochs=1, out=workspace / "clean"))
    assert any("only the logits of the clean view" in message for message in messages)


def lossy_store(workspace: Path, codec: str) -> None:
    """Build views under a codec; the clean view is taken from the finished store."""
    build_logits(
        BuildLogitsOptions(
            teacher="tests.teachers:projection",
            workspace=workspace,
            views=1,
            codec=codec,
            batch_size=8,
            device="cpu",
            store=str(workspace / "stores/lossy.zarr"),
        )
    )


@pytest.mark.parametrize(("codec", "warns"), [("topk(k=1)", True), ("int8", False)])
def test_a_codec_that_turns_the_gradient_is_warned_about(workspace, messages, codec, warns):
    lossy_store(workspace, codec)
    train(options(workspace, teacher="lossy", epochs=1, out=workspace / "lossy"))
    assert any("turns the distillation gradient by" in message for message in messages) is warns


def test_rows_drawn_for_another_temperature_are_refused_before_anything_is_written(workspace):
    lossy_store(workspace, "sampled(draws=20, temperature=2)")
    before = files(workspace)
    with pytest.raises(ConfigError, match="temperature=4: expected 2"):
        train(options(workspace, teacher="lossy"))
    assert files(workspace) == before
    assert train(options(workspace, teacher="lossy", temperature=2.0)).to_json()["top1"] is not None


def test_reshaping_learns_from_other_logits(workspace, finished):
    result = train(options(workspace, reshape=True)).to_json()
    plain, reshaped = (metrics(path)[0] for path in (finished[1]["path"], result["path"]))
    assert reshaped["distillation"] != plain["distillation"]
    # One step has seen the same student: what the teacher says does not change its labels' loss.
    assert reshaped["cross_entropy"] == pytest.approx(plain["cross_entropy"], rel=0.2)
    with pytest.raises(ConfigError, match="reshape=True is given with kd=False"):
        options(workspace, reshape=True, kd=False)


def test_a_run_that_was_stopped_before_its_first_checkpoint_starts_again(workspace, finished):
    run_dir = workspace / "runs/resnet8-fifty-s0"
    for name in ("resume.safetensors", "last.safetensors", "best.safetensors"):
        (run_dir / name).unlink()
    result = train(options(workspace, resume=True)).to_json()
    assert result["resumed_from_epoch"] == 0
    assert_same_run(run_dir, Path(finished[1]["path"]))


def test_a_finished_run_resumed_returns_its_accuracy(workspace, finished):
    result = train(options(workspace, resume=True)).to_json()
    times = ("seconds", "path", "resumed_from_epoch")
    assert result["resumed_from_epoch"] == 2
    for name in finished[1].keys() - set(times):
        assert result[name] == finished[1][name], name


@pytest.mark.parametrize(
    ("changes", "value"),
    [
        ({"epochs": 3}, "epochs is 3, found 2"),
        ({"alpha": 0.5, "lr": 0.25}, "lr is 0.25, found 0.025; alpha is 0.5, found 0.9"),
        ({"temperature": 2.0}, "temperature is 2.0, found 4.0"),
        ({"batch_size": 16}, "batch_size is 16, found 32"),
    ],
)
def test_a_resume_with_other_options_is_refused_and_names_them(workspace, changes, value):
    before = files(workspace)
    with pytest.raises(CacheMismatchError, match=value):
        train(options(workspace, resume=True, **changes))
    assert files(workspace) == before


def test_a_resume_on_other_samples_of_the_same_name_is_refused(workspace):
    path = workspace / "subsets/fifty.npz"
    given = Subset.load(path)
    Subset(given.sample_ids + 1, given.provenance).save(path)
    with pytest.raises(CacheMismatchError, match=r"sample_ids_digest is '[0-9a-f]{64}'"):
        train(options(workspace, resume=True))


def test_a_resume_without_a_run_is_refused(workspace):
    with pytest.raises(ConfigError, match=r"no run .*resnet8-fifty-s7"):
        train(options(workspace, resume=True, seed=7))
    with pytest.raises(ConfigError, match="nothing-here holds no run"):
        train(options(workspace, resume=True, out=workspace / "nothing-here"))


def test_the_run_that_is_resumed_is_the_newest_of_its_name(workspace):
    copy_workspace(workspace / "runs/resnet8-fifty-s0", workspace / "runs/resnet8-fifty-s0-2")
    copy_workspace(workspace / "runs/resnet8-fifty-s0", workspace / "runs/resnet8-fifty-s0-3")
    assert (
        Path(train(options(workspace, resume=True)).to_json()["path"]).name == "resnet8-fifty-s0-3"
    )


def test_a_folder_that_is_there_is_refused_without_resume(workspace):
    run_dir = workspace / "runs/resnet8-fifty-s0"
    before = files(workspace)
    with pytest.raises(ConfigError, match=r"out=.*resnet8-fifty-s0: it exists.*resume"):
        train(options(workspace, out=run_dir))
    assert files(workspace) == before


@pytest.mark.parametrize(
    ("command", "given"),
    [(train, TrainOptions(model="resnet9")), (train_teacher, TrainTeacherOptions(model="vgg"))],
)
def test_an_unknown_model_is_refused_before_anything_is_written(
    tmp_path, monkeypatch, messages, command, given
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"model={given.model}: expected one of .*resnet18"):
        command(given)
    assert messages == []
    assert files(tmp_path) == []


def test_a_store_of_other_data_is_refused_before_anything_is_written(workspace, messages):
    change_manifest(workspace / "stores/projection.zarr", data_fingerprint="f" * 64)
    for changes in ({}, {"kd": False}):
        before = files(workspace)
        with pytest.raises(CacheMismatchError, match=r"data_fingerprint is f{12}"):
            train(options(workspace, subset="full", **changes))
        assert files(workspace) == before
    assert messages == []


def test_a_store_of_other_pixels_is_refused_unless_asked_otherwise(workspace, messages):
    store = workspace / "stores/projection.zarr"
    is_changed = np.arange(64)[:, None] == 3
    change_values(store, "pixel_probe", lambda probe: np.where(is_changed, 255 - probe, probe))
    before = files(workspace)
    with pytest.raises(CacheMismatchError, match=r"1 of 64 probed views.*pixels warn"):
        train(options(workspace))
    assert files(workspace) == before
    train(options(workspace, pixels="warn", epochs=1, out=workspace / "other-pixels"))
    assert any("1 of 64 probed views" in message for message in messages)
    train(options(workspace, kd=False, epochs=1, out=workspace / "no-kd"))


def test_a_subset_of_other_data_is_refused(workspace):
    Subset(np.arange(9), {"data_fingerprint": "e" * 64}).save(workspace / "subsets/other.npz")
    with pytest.raises(CacheMismatchError, match=r"other\.npz was selected from other data.*e{12}"):
        train(options(workspace, subset="other"))


def test_a_subset_without_rows_is_refused_with_the_command_that_makes_them(workspace):
    kept = np.arange(0, 72, 2)
    beton = open_beton(workspace / "train.beton")
    for name, ids in (("even", kept), ("fewer", kept[:20])):
        Subset(ids, {"data_fingerprint": beton.manifest.fingerprint}).save(
            workspace / f"subsets/{name}.npz"
        )
    build_logits(
        BuildLogitsOptions(
            teacher="tests.teachers:projection",
            workspace=workspace,
            subset="even",
            views=1,
            batch_size=8,
            device="cpu",
        )
    )
    name = "projection-even"
    before = files(workspace)
    with pytest.raises(
        CacheMismatchError, match=r"lacks the rows of 36 of 72 samples, .* is 1\. .*build-logits"
    ):
        train(options(workspace, subset="full", teacher=name))
    assert files(workspace) == before
    assert train(options(workspace, subset="fewer", teacher=name)).to_json()["samples"] == 20


def test_the_options_of_the_loop_reach_it_and_the_config(workspace):
    changes = {
        "epochs": None,
        "steps": 5,
        "optimizer": "adamw",
        "weight_decay": 0.01,
        "schedule": "step",
        "warmup": 0.2,
        "milestones": (0.4, 0.8),
        "gamma": 0.3,
        "ema": 0.9,
        "accumulate": 2,
        "clip_norm": 2.0,
        "eval_every": 4,
        "batch_size": 10,
    }
    result = train(options(workspace, **changes)).to_json()
    run_dir = Path(result["path"])
    content = read_json(run_dir / "config.json")
    expected = changes | {"epochs": 2, "milestones": [0.4, 0.8], "momentum": 0.9}
    # 0.001 at 128 samples of a step, which are 20 here.
    expected["lr"] = 0.001 * 20 / 128
    found = content["config"]
    assert {name: found[name] for name in expected} == expected
    assert content["environment"]["threads"] == torch.get_num_threads()
    store = LogitStore.open(workspace / "stores/projection.zarr").manifest
    assert (found["store_digest"], found["teacher_digest"]) == (
        store.digest(),
        store.teacher_digest,
    )
    assert len(found["sample_ids_digest"]) == 64
    # 5 batches of 10: three steps in the first epoch, two in the second.
    _, about = load_weights(run_dir / "resume.safetensors")
    assert about["progress"]["images_seen"] == 50 + 40
    assert (about["optimizer"], about["ema"]) == ("AdamW", 0.9)
    assert [line["top1"] is None for line in metrics(run_dir)] == [True, False]
    assert result["top1_ema"] == metrics(run_dir)[-1]["top1_ema"]


def test_a_resume_under_another_number_of_threads_is_warned_about(workspace, messages):
    path = workspace / "runs/resnet8-fifty-s0/config.json"
    content = read_config(path.parent)
    content["environment"] |= {"threads": 77, "cores": 78}
    write_sealed_json(path, content)
    train(options(workspace, resume=True))
    (said,) = [message for message in messages if "was started elsewhere" in message]
    assert f"threads is {torch.get_num_threads()}, found 77. It continues" in said


def test_a_run_that_was_stopped_before_its_config_begins_anew(workspace):
    (workspace / "runs/resnet8-fifty-s1").mkdir()
    result = train(options(workspace, seed=1, epochs=1, resume=True)).to_json()
    assert Path(result["path"]).name == "resnet8-fifty-s1"
    assert result["resumed_from_epoch"] == 0


def test_tensorboard_is_written_to_the_run_folder(workspace):
    result = train(options(workspace, epochs=1, tensorboard=True)).to_json()
    assert list(Path(result["path"]).glob("tensorboard/events.out.*"))


# `kdcache train --live-teacher`


def live(workspace: Path, **changes: object) -> dict:
    given = {"live_teacher": "tests.teachers:projection", "batch_size": 8, "epochs": 2}
    return train(options(workspace, **given | {"subset": "full"} | changes)).to_json()


def test_a_live_run_ends_in_the_same_student_as_one_from_an_exact_store(workspace):
    """The store's forwards had 8 images, as the batches of both runs; and as many threads."""
    found = live(workspace, views=3, epochs=4)
    cached = train(options(workspace, batch_size=8, epochs=4, subset="full")).to_json()
    assert Path(found["path"]).name == "resnet8-full-s0-live"
    assert_same_run(Path(found["path"]), Path(cached["path"]))
    assert (found["teacher_forwards"], cached["teacher_forwards"]) == (4 * 72, 0)
    about = read_json(Path(found["path"]) / "config.json")["config"]
    cached_about = read_json(Path(cached["path"]) / "config.json")["config"]
    assert about["teacher_digest"] == cached_about["teacher_digest"]
    assert (about["store_digest"], about["views"]) == (None, 3)


def test_a_live_run_shows_fresh_views_and_needs_no_store(workspace, messages):
    turning = live(workspace, views=1)
    (workspace / "workspace.json").unlink()
    result = live(workspace)
    assert result["teacher_forwards"] == 2 * 72
    first, second = metrics(result["path"]), metrics(turning["path"])
    assert first[0]["loss"] == second[0]["loss"]
    assert first[1]["loss"] != second[1]["loss"]
    assert any("live teacher tests.teachers:projection, V = epochs" in said for said in messages)


def test_alpha_by_what_is_kept_asks_of_how_many(workspace):
    """Of a packed subset alone nobody knows; a store of all data, or a number, says it."""
    pack(PackOptions(workspace=workspace, subset="fifty"))
    (workspace / "workspace.json").unlink()
    with pytest.raises(ConfigError, match=r"alpha=auto, but .*fifty\.beton holds only a subset"):
        live(workspace, subset="fifty", alpha="auto")
    store = str(next((workspace / "stores").glob("*.zarr")))
    path = live(workspace, subset="fifty", alpha="auto", store=store)["path"]
    alpha = read_json(Path(path) / "config.json")["config"]["alpha"]
    assert alpha == 1 - 50 / 72 / 2


def test_a_live_run_goes_on_where_it_was_stopped(workspace):
    live(workspace, ema=0.9)
    again = live(workspace, ema=0.9, resume=True)
    assert (again["resumed_from_epoch"], again["teacher_forwards"]) == (2, 2 * 72)
    with pytest.raises(
        CacheMismatchError, match=r"live_teacher is 'tests\.teachers:other_projection'"
    ):
        live(workspace, ema=0.9, resume=True, live_teacher="tests.teachers:other_projection")


def test_a_live_teacher_gets_what_its_owner_states(workspace, messages):
    path = live(workspace, teacher_mean="imagenet")["path"]
    about = read_json(Path(path) / "config.json")["config"]
    assert (about["teacher_mean"], about["teacher_size"]) == ([0.485, 0.456, 0.406], 32)
    assert any("mean 0.485,0.456,0.406, std 0.229,0.224,0.225" in said for said in messages)
    assert metrics(path)[0]["loss"] != metrics(live(workspace)["path"])[0]["loss"]
    with pytest.raises(CacheMismatchError, match=r"teacher_mean is \[0\.0, 0\.0, 0\.0\]"):
        live(workspace, teacher_mean="none", out=path, resume=True)


def test_a_live_teacher_that_returns_probabilities_is_refused_or_stated(workspace):
    before = files(workspace)
    softmax = "tests.store.teachers:softmax"
    with pytest.raises(TeacherError, match="teacher softmax returns probabilities"):
        live(workspace, live_teacher=softmax)
    assert files(workspace) == before
    as_logits = metrics(live(workspace)["path"])
    found = metrics(live(workspace, live_teacher=softmax, teacher_output="probabilities")["path"])
    assert found[0]["loss"] == pytest.approx(as_logits[0]["loss"], rel=1e-3)


@pytest.mark.parametrize(
    "changes", [{"teacher_mean": "none"}, {"stem": "small"}, {"teacher_output": "probabilities"}]
)
def test_what_describes_a_live_teacher_needs_one(changes):
    (name,) = changes
    with pytest.raises(ConfigError, match=f"{name}=.*: expected live_teacher with it"):
        TrainOptions(**changes)


def test_a_live_teacher_that_does_not_fit_is_refused_before_anything_is_written(workspace):
    before = files(workspace)
    with pytest.raises(ConfigError, match=r"teacher=no-such-teacher"):
        live(workspace, live_teacher="no-such-teacher")
    assert files(workspace) == before


# `kdcache train-teacher`


def teacher_options(workspace: Path, **changes: object) -> TrainTeacherOptions:
    given = {"workspace": workspace, "model": "resnet8", "epochs": 1, "num_workers": 1}
    return TrainTeacherOptions(**given | changes)


def test_a_teacher_is_trained_once_and_replaced_only_when_asked(workspace):
    first = train_teacher(teacher_options(workspace)).to_json()
    path = workspace / "teachers/resnet8.safetensors"
    assert first["path"] == str(path.resolve())
    tensors, about = load_weights(path)
    make_model("resnet8", num_classes=4, image_size=32).load_state_dict(tensors)
    assert (about["arch"], about["classes"], about["top1"]) == ("resnet8", 4, first["top1"])
    content = path.read_bytes()

    assert train_teacher(teacher_options(workspace)).to_json() == first | {"seconds": 0.0}
    with pytest.raises(CacheMismatchError, match="seed is 5, found 0"):
        train_teacher(teacher_options(workspace, seed=5))
    assert path.read_bytes() == content

    train_teacher(teacher_options(workspace, seed=5, overwrite=True))
    replaced, about = load_weights(path)
    assert about["seed"] == 5
    assert not torch.equal(replaced["fc.weight"], tensors["fc.weight"])


def test_a_teachers_file_states_what_its_owner_must_know(workspace):
    train_teacher(teacher_options(workspace, model="shufflenet_v2_x0_5", image_size=16))
    path = workspace / "teachers/shufflenet_v2_x0_5.safetensors"
    _, about = load_weights(path)
    data = open_beton(workspace / "train.beton").manifest
    assert {name: about[name] for name in ("mean", "std", "class_names")} == {
        "mean": data.mean,
        "std": data.std,
        "class_names": data.class_names,
    }
    assert (about["image_size"], about["stem"]) == (16, "small")
    # The command that kdcache proposes next gives it the same images and the same stem.
    built = build_logits(BuildLogitsOptions(workspace, teacher=path.stem, views=0, device="cpu"))
    store = LogitStore.open(built.path).manifest
    assert (store.teacher_size, store.image_size) == (16, 32)
    assert store.teacher_arch == "shufflenet_v2_x0_5 (small stem)"
    assert store.teacher_digest == about["digest"]
    weights = str(workspace / "runs/teacher-shufflenet_v2_x0_5/last.safetensors")
    found = evaluate(EvaluateOptions(workspace, weights, num_workers=1))
    assert found.top1 == pytest.approx(about["top1"])


def test_a_teacher_that_was_killed_goes_on_when_it_is_trained_again(workspace):
    undisturbed = copy_workspace(workspace, workspace.with_name("undisturbed"))
    train_teacher(teacher_options(undisturbed, epochs=3))
    train_teacher(teacher_options(workspace, epochs=3))
    run_dir = workspace / "runs/teacher-resnet8"
    # As if it had been killed just before the teacher appeared; the loop resumes at any step.
    (workspace / "teachers/resnet8.safetensors").unlink()
    train_teacher(teacher_options(workspace, epochs=3))
    assert_same_run(run_dir, undisturbed / "runs/teacher-resnet8")
    content, about = (
        load_weights(folder / "teachers/resnet8.safetensors") for folder in (workspace, undisturbed)
    )
    assert all(torch.equal(value, about[0][name]) for name, value in content[0].items())
    assert len(metrics(run_dir)) == 3


def test_a_teachers_averaged_weights_are_taken_where_they_are_asked_for(workspace):
    result = train_teacher(teacher_options(workspace, ema=0.9, epochs=2)).to_json()
    found, about = load_weights(workspace / "teachers/resnet8.safetensors")
    averaged, _ = load_weights(workspace / "runs/teacher-resnet8/ema.safetensors")
    assert all(torch.equal(value, averaged[name]) for name, value in found.items())
    line = metrics(workspace / "runs/teacher-resnet8")[-1]
    assert (result["top1"], about["top1"], about["ema"]) == (*[line["top1_ema"]] * 2, 0.9)


def test_a_teacher_that_is_trained_otherwise_leaves_nothing_of_the_one_before(workspace):
    train_teacher(teacher_options(workspace, ema=0.9))
    train_teacher(teacher_options(workspace, overwrite=True, seed=1))
    run_dir = workspace / "runs/teacher-resnet8"
    assert not (run_dir / "ema.safetensors").exists()
    assert read_json(run_dir / "config.json")["config"]["seed"] == 1
