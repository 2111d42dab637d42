"""timm's published weights: safetensors alone, with a remedy where there are none."""

from __future__ import annotations

import json
import logging
import os
import pickle
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data import create_transform
from timm.models import generate_default_cfgs, register_model
from torch import nn

from kdcache.errors import ConfigError, TeacherError
from kdcache.files import sha256_of
from kdcache.models.registry import make_model
from kdcache.teacher.member_settings import MemberSettings
from kdcache.teacher.teacher import open_teacher
from kdcache.teacher.timm_weights import find_timm
from kdcache.teacher.torchvision_weights import find_torchvision
from kdcache.workspace import Workspace
from tests.models.test_weights import Bomb
from tests.teacher.published_models import CLASSES
from tests.teacher.test_teacher import assert_same_weights, manifest

ARCH = "test_byobnet"
"""timm's own model for tests, 0.5 M parameters."""

CONFIG = {
    "architecture": ARCH,
    "num_classes": 4,
    "num_features": 256,
    "label_names": CLASSES,
    "pretrained_cfg": {
        "tag": "mine",
        "input_size": [3, 96, 96],
        "crop_pct": 0.9,
        "crop_mode": "center",
        "interpolation": "bicubic",
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.3, 0.25],
        "first_conv": "stem.conv",
        "classifier": "head.fc",
    },
}


def written_model() -> nn.Module:
    return timm.create_model(ARCH, num_classes=4)


def write_folder(folder: Path, model: nn.Module, **changes: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def open_it(spec: str, workspace: Path, *, classes: int = 4, arch: str | None = None):
    return open_teacher(
        spec,
        settings=MemberSettings(arch=arch),
        workspace=Workspace(workspace),
        data=manifest(classes),
        image_size=96,
    )


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of the Hugging Face hub, which cannot be reached."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hf"


def in_cache(cache: Path, repository: str, folder: Path) -> Path:
    """Put a folder's files into the hub's cache as a download does; return that of the weights."""
    root = cache / f"models--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / ("0" * 40)
    for path in (root / "refs", root / "blobs", snapshot):
        path.mkdir(parents=True)
    (root / "refs/main").write_text("0" * 40)
    for file in folder.iterdir():
        blob = root / "blobs" / (sha256_of(file) if file.suffix == ".safetensors" else "1" * 40)
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot / "model.safetensors"


def test_a_folder_brings_model_weights_classes_and_preprocessing(tmp_path):
    model = written_model()
    folder = write_folder(tmp_path / "mine", model)
    teacher = open_it(f"timm:local-dir:{folder}", tmp_path)
    assert_same_weights(teacher.model, model)
    assert (teacher.mean, teacher.std) == ([0.4, 0.5, 0.6], [0.2, 0.3, 0.25])
    assert (teacher.name, teacher.spec) == ("timm-mine", f"timm:local-dir:{folder}")
    found = find_timm(f"timm:local-dir:{folder}")
    assert (found.classes, found.image_size, found.is_imagenet) == (4, 96, False)
    assert found.center_crop_ratio == 96 / 106  # of the floor of 96 / 0.9 pixels
    with pytest.raises(TeacherError, match="have 4 classes, expected 6"):
        open_it(f"timm:local-dir:{folder}", tmp_path, classes=6)


def test_the_class_names_of_a_folder_are_compared(tmp_path):
    names = [CLASSES[0], CLASSES[2], CLASSES[1], CLASSES[3]]
    folder = write_folder(tmp_path / "mine", written_model(), label_names=names)
    with pytest.raises(TeacherError, match="class 1 of the packed data is 'class_1'"):
        open_it(f"timm:local-dir:{folder}", tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.pth", "model.pth"])
def test_a_pickle_in_a_folder_is_refused_and_never_executed(tmp_path, name):
    bomb = Bomb(tmp_path / "executed")
    folder = write_folder(tmp_path / "mine", written_model())
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(bomb))
    with pytest.raises(TeacherError, match=r"model\.safetensors does not exist.*save_file"):
        open_it(f"timm:local-dir:{folder}", tmp_path)
    assert not bomb.trace.exists()


def test_weights_that_are_cut_short_are_named_with_their_path(tmp_path):
    folder = write_folder(tmp_path / "mine", written_model())
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size - 5)
    with pytest.raises(TeacherError, match=rf"{path} is cut short or damaged \(.*Remove it"):
        open_it(f"timm:local-dir:{folder}", tmp_path)


def test_weights_of_another_model_are_named_with_their_path(tmp_path):
    folder = write_folder(tmp_path / "mine", nn.Linear(2, 3))
    with pytest.raises(TeacherError, match=rf"{folder}/model\.safetensors does not hold the weig"):
        open_it(f"timm:local-dir:{folder}", tmp_path)


def test_a_repository_is_read_from_the_hubs_cache_without_asking_the_hub(cache, tmp_path):
    model = written_model()
    in_cache(cache, "owner/model", write_folder(tmp_path / "mine", model))
    teacher = open_it("timm:hf-hub:owner/model", tmp_path)
    assert_same_weights(teacher.model, model)
    assert (teacher.name, teacher.arch) == ("timm-owner-model", "timm:hf-hub:owner/model")


def test_a_changed_bit_in_the_hubs_cache_is_found(cache, tmp_path):
    path = in_cache(cache, "owner/model", write_folder(tmp_path / "mine", written_model()))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.resolve().write_bytes(content)
    with pytest.raises(TeacherError, match=rf"{path.resolve()} has the sha256 .*was changed"):
        open_it("timm:hf-hub:owner/model", tmp_path)


@pytest.mark.parametrize(
    ("spec", "url"),
    [
        ("timm:hf-hub:owner/model", "owner/model/resolve/main/config.json"),
        ("timm:hf-hub:owner/model@v2", "owner/model/resolve/v2/config.json"),
        ("timm:test_byobnet", "timm/test_byobnet.r160_in1k/resolve/main/model.safetensors"),
    ],
)
def test_without_a_network_the_file_and_the_folder_are_named(cache, tmp_path, spec, url):
    data = manifest(1000 if spec == "timm:test_byobnet" else 4)
    with pytest.raises(TeacherError, match="cannot be downloaded") as error:
        open_teacher(spec, workspace=Workspace(tmp_path), data=data, image_size=96)
    message = str(error.value)
    assert message.startswith(f"https://huggingface.co/{url} cannot be downloaded")
    assert f"is not in {cache}" in message
    assert "teacher=timm:local-dir:FOLDER" in message


@pytest.mark.usefixtures("cache")
def test_timms_own_models_are_imagenets_where_they_have_1000_classes(tmp_path):
    found = find_timm("timm:resnet18")
    assert (found.arch, found.classes) == ("timm:resnet18.a1_in1k", 1000)
    assert found.is_imagenet
    tagged = find_timm("timm:resnet18.tv_in1k")
    assert (tagged.arch, tagged.mean) == (
        "timm:resnet18.tv_in1k",
        find_torchvision("resnet18").mean,
    )
    with pytest.raises(TeacherError, match=r"resnet18\.a1_in1k have 1,000 classes, expected 4"):
        open_it("timm:resnet18", tmp_path)  # before anything is brought


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "efficientnet_b3"])
def test_the_center_crop_ratio_is_that_of_timms_own_transform(name):
    about = timm.get_pretrained_cfg(name)
    steps = create_transform(
        about.input_size, crop_pct=about.crop_pct, crop_mode=about.crop_mode
    ).transforms
    found = find_timm(f"timm:{name}")
    assert found.image_size == about.input_size[1]
    assert found.center_crop_ratio == steps[1].size[0] / steps[0].size


def test_another_crop_mode_is_said(caplog):
    (name,) = [
        name
        for name in timm.list_pretrained("vit_*")
        if timm.get_pretrained_cfg(name).crop_mode == "squash"
    ][:1]
    with caplog.at_level(logging.INFO):
        find_timm(f"timm:{name}")
    assert "crop mode squash; here it sees a centre crop" in caplog.text


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("timm:resnet18.no_such_tag", r"Invalid pretrained tag.*timm:resnet18\.a1_in1k"),
        ("timm:resnet81", r"teacher=timm:resnet81: expected .* timm:resnet18"),
        ("timm:zzz", "such as timm:resnet50"),
    ],
)
def test_a_name_that_timm_does_not_know_is_asked_wrongly(tmp_path, spec, match):
    with pytest.raises(ConfigError, match=match):
        open_it(spec, tmp_path)


@register_model
def kdcache_timm_tiny(pretrained: bool = False, **options: object) -> nn.Module:
    """A model in timm's registry whose files are in the tests' hands."""
    byobnet = timm.models.byobnet
    byobnet.model_cfgs["kdcache_timm_tiny"] = byobnet.model_cfgs[ARCH]
    return byobnet._create_byobnet("kdcache_timm_tiny", pretrained, **options)  # noqa: SLF001


@pytest.mark.parametrize(
    ("about", "named"),
    [
        ({"url": "https://somewhere/weights-0123abcd.pth"}, "weights-0123abcd.pth"),
        ({"hf_hub_id": "o/m", "hf_hub_filename": "pytorch_model.bin"}, "pytorch_model.bin"),
        ({"file": "/some/where/weights.pth"}, "/some/where/weights.pth"),
        ({"url": "https://somewhere/weights.npz", "custom_load": True}, "weights.npz"),
    ],
    ids=["url", "bin on the hub", "file", "npz"],
)
def test_what_is_published_as_no_safetensors_is_refused(tmp_path, monkeypatch, about, named):
    register(monkeypatch, **about)
    with pytest.raises(TeacherError, match=rf"{named}, expected safetensors") as error:
        open_it("timm:kdcache_timm_tiny", tmp_path)
    assert "arch=timm:kdcache_timm_tiny" in str(error.value)


def test_a_registered_file_of_safetensors_is_loaded(tmp_path, monkeypatch):
    model = written_model()
    path = write_folder(tmp_path / "mine", model) / "model.safetensors"
    register(monkeypatch, file=str(path), num_classes=4, label_names=CLASSES)
    teacher = open_it("timm:kdcache_timm_tiny", tmp_path)
    assert_same_weights(teacher.model, model)


def register(monkeypatch: pytest.MonkeyPatch, **about: object) -> None:
    """Let timm's registry say this of the tests' model."""
    registry = timm.models._registry  # noqa: SLF001
    (config,) = generate_default_cfgs({"kdcache_timm_tiny": about}).values()
    whole = CONFIG["pretrained_cfg"] | {"architecture": "kdcache_timm_tiny", "tag": None}
    for name, value in (whole | about).items():
        setattr(config.default, name, value)
    monkeypatch.setitem(registry._model_pretrained_cfgs, "kdcache_timm_tiny", config.default)  # noqa: SLF001


def test_without_timm_the_command_that_installs_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    remedy = r"timm is not installed\. Run: pip install 'kdcache\[timm\]'"
    with pytest.raises(ConfigError, match=rf"teacher=timm:resnet18: {remedy}"):
        open_it("timm:resnet18", tmp_path)
    with pytest.raises(ConfigError, match=rf"model=timm:resnet18: {remedy}"):
        make_model("timm:resnet18", num_classes=4, image_size=32)


def test_a_file_opens_with_a_model_of_timm_as_arch(tmp_path):
    model = written_model()
    save_file(model.state_dict(), tmp_path / "mine.safetensors")
    teacher = open_it(str(tmp_path / "mine.safetensors"), tmp_path, arch=f"timm:{ARCH}")
    assert_same_weights(teacher.model, model)
    assert (teacher.spec, teacher.arch) == ("mine", f"timm:{ARCH}")


def test_a_model_of_timm_that_is_made_for_one_size_is_made_for_the_data():
    model = make_model("timm:test_vit", num_classes=4, image_size=64)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 4)
    with pytest.raises(ConfigError, match="model=timm:zzz"):
        make_model("timm:zzz", num_classes=4, image_size=64)
