"""`kdcache evaluate`: the same numbers as the run's own, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kdcache.data.beton import open_beton
from kdcache.errors import CacheMismatchError, ConfigError, DatasetError, WeightsError
from kdcache.models.registry import make_model
from kdcache.models.weights import load_weights, save_weights
from kdcache.options import EvaluateOptions
from kdcache.reader.batches import view_pixels
from kdcache.training.evaluate import evaluate
from kdcache.training.train import train
from tests.training.loops import options
from tests.workspaces import copy_workspace, metrics


@pytest.fixture(scope="module")
def workspace(tiny_store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with one run of three epochs, with an average."""
    workspace = tmp_path_factory.mktemp("evaluate") / "workspace"
    copy_workspace(tiny_store.path.parents[1], workspace)
    train(options(workspace, subset="full", teacher="projection", epochs=3, ema=0.8))
    return workspace


def found(workspace: Path, weights: str | None = None, **changes: object) -> dict:
    return evaluate(EvaluateOptions(workspace, weights, num_workers=1, **changes)).to_json()


NAME = "resnet8-full-s0"


def test_the_last_run_is_evaluated_as_it_evaluated_itself(workspace):
    lines = metrics(workspace / "runs" / NAME)
    last = found(workspace)
    assert (last["top1"], last["top5"]) == (lines[-1]["top1"], lines[-1]["top5"])
    assert (last["samples"], last["split"]) == (24, "val")
    assert last["path"] == str((workspace / f"runs/{NAME}/last.safetensors").resolve())
    assert found(workspace, which="best")["top1"] == max(line["top1"] for line in lines)
    assert found(workspace, which="ema")["top1"] == lines[-1]["top1_ema"]


def test_a_run_is_given_by_name_folder_or_file(workspace):
    run_dir = workspace / "runs" / NAME
    answers = [
        found(workspace, str(given)) for given in (NAME, run_dir, run_dir / "last.safetensors")
    ]
    for answer in answers:
        del answer["seconds"]
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_numbers_are_those_of_the_clean_view(workspace, split):
    beton = open_beton(workspace / f"{split}.beton")
    model = make_model("resnet8", num_classes=4, image_size=32).eval()
    model.load_state_dict(load_weights(workspace / f"runs/{NAME}/last.safetensors")[0])
    data = beton.manifest
    seen = torch.from_numpy(view_pixels(beton, data.policy, 0, 0, beton.sample_ids)) / 255
    images = ((seen - torch.tensor(data.mean)) / torch.tensor(data.std)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        log_probs = model(images).double().log_softmax(dim=1)
    labels = torch.from_numpy(beton.labels)
    answer = found(workspace, split=split)
    assert answer["samples"] == len(beton)
    assert answer["top1"] == pytest.approx(100 * (log_probs.argmax(1) == labels).double().mean())
    nll = -log_probs[torch.arange(len(labels)), labels].mean()
    assert answer["nll"] == pytest.approx(float(nll), rel=1e-4)
    assert 0 <= answer["ece"] <= 1


def test_a_file_of_another_program_needs_its_model_named(workspace, tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "other.safetensors"
    save_file(make_model("resnet8", num_classes=4, image_size=32).state_dict(), path)
    with pytest.raises(ConfigError, match=r"model is missing.*other\.safetensors"):
        found(workspace, str(path))
    assert found(workspace, str(path), model="resnet8")["samples"] == 24
    with pytest.raises(WeightsError, match=r"other\.safetensors does not fit"):
        found(workspace, str(path), model="resnet20")
    with pytest.raises(ConfigError, match="model=resnet9"):
        found(workspace, str(path), model="resnet9")


def test_a_file_is_evaluated_on_the_images_that_its_owner_states(workspace, tmp_path, caplog):
    torch.manual_seed(0)
    path = tmp_path / "other.safetensors"
    model = make_model("mobilenet_v2", num_classes=4, image_size=32).eval()
    save_file(model.state_dict(), path)
    given = {"model": "mobilenet_v2"}
    with pytest.raises(ConfigError, match="stem is not given, expected small or standard"):
        found(workspace, str(path), **given)
    beton = open_beton(workspace / "val.beton")
    seen = torch.from_numpy(view_pixels(beton, "clean", 0, 0, beton.sample_ids)) / 255
    labels = torch.from_numpy(beton.labels)
    for mean, std in ((0.0, 1.0), (0.5, 0.25)):
        with torch.inference_mode():
            logits = model(((seen - mean) / std).permute(0, 3, 1, 2)).double()
        nll = float(torch.nn.functional.cross_entropy(logits, labels))
        words = {"mean": str(mean), "std": str(std), "stem": "small"}
        assert found(workspace, str(path), **given, **words)["nll"] == pytest.approx(nll, rel=1e-4)
    about = {"arch": "mobilenet_v2", "stem": "small", "mean": [0.5] * 3, "std": [0.25] * 3}
    save_weights(path, model.state_dict(), about)
    caplog.clear()
    assert found(workspace, str(path))["nll"] == pytest.approx(nll, rel=1e-4)
    assert "does not state" not in caplog.text
    with pytest.raises(ConfigError, match=r"mean=0,0,0: with std 1,1,1, but .*other\.safetensors"):
        found(workspace, str(path), mean="none")


def test_a_model_that_is_not_the_files_own_is_refused(workspace):
    with pytest.raises(ConfigError, match=r"model=resnet20: .* is of the model resnet8"):
        found(workspace, NAME, model="resnet20")


def test_weights_of_other_classes_are_refused(workspace, tmp_path):
    path = tmp_path / "five.safetensors"
    model = make_model("resnet8", num_classes=5, image_size=32)
    save_weights(path, model.state_dict(), {"arch": "resnet8", "classes": 5})
    with pytest.raises(CacheMismatchError, match=r"five\.safetensors has 5 classes, expected 4"):
        found(workspace, str(path))


def test_what_is_not_there_is_named_with_what_is(workspace, tmp_path):
    with pytest.raises(ConfigError, match=f"resnet9-full-s0 is not found.*{NAME}"):
        found(workspace, "resnet9-full-s0")
    with pytest.raises(ConfigError, match=r"nothing\.safetensors is not found"):
        found(workspace, str(tmp_path / "nothing.safetensors"))
    run_dir = copy_workspace(workspace / "runs" / NAME, tmp_path / "run")
    (run_dir / "ema.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"which=ema: .*run has no ema.*best.safetensors"):
        found(workspace, str(run_dir), which="ema")
    with pytest.raises(ConfigError, match="which=best: expected a run"):
        found(workspace, str(run_dir / "last.safetensors"), which="best")


def test_where_nothing_was_trained_train_is_named(tiny_workspace, tmp_path):
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    with pytest.raises(DatasetError, match="kdcache pack SOURCE"):
        found(workspace)
    for file in tiny_workspace.glob("val.*"):
        (workspace / file.name).hardlink_to(file)
    with pytest.raises(ConfigError, match="Run: kdcache train"):
        found(workspace)
    with pytest.raises(DatasetError, match=r"train\.beton is missing"):
        found(workspace, split="train")
