"""torchvision's published weights: found, brought over HTTP, checked, and never executed."""

from __future__ import annotations

import logging
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import models
from torchvision.transforms import functional

from kdcache.data.views import view_parameters
from kdcache.errors import ConfigError, TeacherError
from kdcache.models.weights import save_weights
from kdcache.teacher.member_settings import MemberSettings
from kdcache.teacher.teacher import open_teacher, tensor_digest
from kdcache.teacher.torchvision_weights import find_torchvision
from kdcache.workspace import Workspace
from tests.models.test_weights import Bomb
from tests.teacher.published_models import (
    CROP,
    MEAN,
    RESIZE,
    STD,
    TinyNet_Weights,
    publish,
    tiny_net,
)
from tests.teacher.server import serving
from tests.teacher.test_teacher import assert_same_weights, manifest

FIRST, SECOND = TinyNet_Weights.FIRST, TinyNet_Weights.SECOND


def open_it(spec: str, workspace: Path, *, arch: str | None = None, classes: int = 4):
    return open_teacher(
        spec,
        settings=MemberSettings(arch=arch),
        workspace=Workspace(workspace),
        data=manifest(classes),
        image_size=32,
    )


def test_published_weights_are_brought_once_and_bring_their_own_preprocessing(
    server, hub, tmp_path, caplog
):
    published = tiny_net(1)
    file = publish(SECOND, published.state_dict(), server.folder, server.address)
    with caplog.at_level(logging.INFO):
        teacher = open_it("kdcache_tiny", tmp_path)
    assert_same_weights(teacher.model, published)
    assert teacher.model.gain == 2  # built by its publisher's function for weights
    assert (teacher.name, teacher.spec) == ("kdcache_tiny", "kdcache_tiny")
    assert (teacher.arch, teacher.digest) == ("kdcache_tiny.SECOND", tensor_digest(published))
    assert (teacher.mean, teacher.std) == (MEAN, STD)
    assert f"downloading {SECOND.url} -> {hub / file.name}" in caplog.text
    assert "evaluated at 24 px on a centre crop of 0.9231" in caplog.text
    open_it("kdcache_tiny", tmp_path)
    assert len(server.asked) == 1
    assert "get_state_dict" not in vars(SECOND)  # torchvision's reader is back


def test_an_entry_is_named_after_a_point(server, tmp_path):
    models_by_entry = {"FIRST": tiny_net(1), "SECOND": tiny_net(2)}
    for name, model in models_by_entry.items():
        publish(TinyNet_Weights[name], model.state_dict(), server.folder, server.address)
    for name, model in models_by_entry.items():
        teacher = open_it(f"kdcache_tiny.{name}", tmp_path)
        assert_same_weights(teacher.model, model)
        assert (teacher.name, teacher.arch) == (f"kdcache_tiny.{name}",) * 2


def test_an_entry_that_is_not_there_lists_those_that_are(tmp_path):
    with pytest.raises(
        ConfigError, match=r"teacher=kdcache_tiny\.THIRD: .*tiny\.FIRST, kdcache_tiny\.SECOND"
    ):
        open_it("kdcache_tiny.THIRD", tmp_path)
    with pytest.raises(TeacherError, match=r"kdcache_tiny\.FEATURES has no classes"):
        open_it("kdcache_tiny.FEATURES", tmp_path)


def test_a_file_in_the_workspace_goes_before_what_is_published(server, tmp_path):
    publish(SECOND, tiny_net(1).state_dict(), server.folder, server.address)
    own = tiny_net(2)
    path = Workspace(tmp_path).teacher("kdcache_tiny")
    save_weights(path, own.state_dict(), {"arch": "kdcache_tiny"})
    teacher = open_it("kdcache_tiny", tmp_path)
    assert_same_weights(teacher.model, own)
    assert teacher.mean == manifest(4).mean
    assert not server.asked


def test_weights_of_before_torch_1_6_are_read(server, tmp_path):
    published = tiny_net(1)
    file = publish(
        SECOND,
        published.state_dict(),
        server.folder,
        server.address,
        _use_new_zipfile_serialization=False,
    )
    assert not zipfile.is_zipfile(file)
    assert_same_weights(open_it("kdcache_tiny", tmp_path).model, published)


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "legacy"])
def test_a_pickle_with_the_right_digest_is_still_not_executed(server, tmp_path, as_zip):
    bomb = Bomb(tmp_path / "executed")
    file = publish(
        SECOND,
        {"fc.weight": bomb},
        server.folder,
        server.address,
        _use_new_zipfile_serialization=as_zip,
    )
    with pytest.raises(TeacherError, match=rf"{file.name} does not hold the weights of this model"):
        open_it("kdcache_tiny", tmp_path)
    assert not bomb.trace.exists()


@pytest.mark.parametrize(
    "damage",
    [lambda path: os.truncate(path, path.stat().st_size // 2), lambda path: path.write_bytes(b"")],
    ids=["half", "empty"],
)
def test_a_file_that_was_brought_by_halves_is_named_with_its_source(server, hub, tmp_path, damage):
    file = publish(SECOND, tiny_net(1).state_dict(), server.folder, server.address)
    open_it("kdcache_tiny", tmp_path)
    damage(hub / file.name)
    with pytest.raises(TeacherError, match=r"the download is incomplete.*Remove it") as error:
        open_it("kdcache_tiny", tmp_path)
    assert f"{hub / file.name} has the sha256 " in str(error.value)
    assert f"expected {file.stem[-8:]}" in str(error.value)
    assert SECOND.url in str(error.value)


def test_one_changed_bit_is_found_before_the_file_is_read(server, hub, tmp_path):
    bomb = Bomb(tmp_path / "executed")
    file = publish(SECOND, tiny_net(1).state_dict(), server.folder, server.address)
    hub.mkdir(parents=True)
    torch.save(bomb, hub / file.name)
    with pytest.raises(TeacherError, match="was changed"):
        open_it("kdcache_tiny", tmp_path)
    assert not bomb.trace.exists()
    assert not server.asked


def test_a_server_that_sends_something_else_leaves_no_file(server, hub, tmp_path):
    file = publish(SECOND, tiny_net(1).state_dict(), server.folder, server.address)
    torch.save(tiny_net(2).state_dict(), file)
    with pytest.raises(TeacherError, match=rf"returned another file than {file.name}"):
        open_it("kdcache_tiny", tmp_path)
    assert [path.name for path in hub.iterdir() if not path.name.endswith(".lock")] == []


def test_without_a_network_the_file_to_bring_and_its_folder_are_named(hub, tmp_path):
    folder = tmp_path / "published"
    folder.mkdir()
    with serving(folder) as running:
        file = publish(SECOND, tiny_net(1).state_dict(), folder, running.address)
    with pytest.raises(TeacherError, match=r"cannot be reached \(.*refused.*\)") as error:
        open_it("kdcache_tiny", tmp_path)
    assert f"Copy {file.name} from a machine that reaches it into {hub}" in str(error.value)
    file.rename(hub / file.name)  # done as told
    assert open_it("kdcache_tiny", tmp_path).arch == "kdcache_tiny.SECOND"


@pytest.mark.parametrize("name", ["tiny.pth", "tiny-abc.pth", "tiny_0123abcd.pth"])
def test_what_names_no_digest_is_not_even_asked_for(server, tmp_path, name):
    SECOND.value.url = f"{server.address}/{name}"
    with pytest.raises(TeacherError, match=rf"{name} names no sha256"):
        open_it("kdcache_tiny", tmp_path)
    assert not server.asked


def test_another_number_of_classes_is_found_before_anything_is_brought(server, tmp_path):
    publish(SECOND, tiny_net(1).state_dict(), server.folder, server.address)
    with pytest.raises(
        TeacherError,
        match=r"kdcache_tiny\.SECOND have 4 classes, expected 6 .* train-teacher --model resnet50",
    ):
        open_it("kdcache_tiny", tmp_path, classes=6)
    assert not server.asked


def test_classes_in_another_order_are_found_before_anything_is_brought(server, tmp_path):
    with pytest.raises(TeacherError, match=r"class 1 .* is 'class_1', .*'class_2|class_2, "):
        open_it("kdcache_tiny.SWAPPED", tmp_path)
    assert not server.asked


def test_arch_has_no_use_for_published_weights(tmp_path):
    with pytest.raises(ConfigError, match=r"arch=resnet8: kdcache_tiny brings its own"):
        open_it("kdcache_tiny", tmp_path, arch="resnet8")


@pytest.mark.parametrize(
    "name", ["fasterrcnn_resnet50_fpn", "fcn_resnet50", "raft_small", "r3d_18", "resnet9"]
)
def test_models_for_other_tasks_are_no_teachers(name):
    assert find_torchvision(name) is None


ENTRIES = [
    f"{name}.{entry.name}"
    for name in models.list_models(module=models)
    for entry in models.get_model_weights(name)
    if entry.meta.get("categories")
]


def test_every_classifier_of_torchvision_is_found_with_a_digest_in_its_file_name():
    assert len(ENTRIES) > 100
    for spec in ENTRIES:
        found = find_torchvision(spec)
        assert found is not None
        assert (found.arch, found.classes, found.is_imagenet) == (spec, 1000, True)
        assert 0.8 < found.center_crop_ratio <= 1
        assert 50 < found.top1 < 100
        name, _, entry = spec.partition(".")
        url = models.get_model_weights(name)[entry].url
        assert len(torch.hub.HASH_REGEX.search(url.rpartition("/")[2])[1]) >= 8


@pytest.mark.parametrize("spec", ["resnet50", "swin_t", "efficientnet_b4", "inception_v3"])
@pytest.mark.parametrize("size", [(375, 500), (640, 427), (300, 300)])
def test_the_clean_view_is_the_square_that_torchvision_evaluates_on(spec, size):
    """Where a ramp of rows and columns ends up tells which box was cut out."""
    found = find_torchvision(spec)
    height, width = size
    ramps = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"))
    entry = models.get_model_weights(spec).DEFAULT.transforms()
    short = functional.resize(torch.from_numpy(ramps).float(), entry.resize_size, antialias=True)
    seen = functional.center_crop(short, entry.crop_size).numpy()
    step = min(size) / entry.resize_size[0]
    (box,) = view_parameters("clean", 0, 0, [0], size, center_crop_ratio=found.center_crop_ratio)
    for place, ramp in enumerate((seen[0, :, 0], seen[1, 0, :])):
        first, end = ramp[0] - (step - 1) / 2, ramp[-1] + (step + 1) / 2
        # One pixel of the smaller image for its rounded size and place, one for the box's own.
        assert box[place] == pytest.approx(first, abs=step + 1)
        assert box[place] + box[place + 2] == pytest.approx(end, abs=step + 1)
    assert found.center_crop_ratio == pytest.approx(entry.crop_size[0] / entry.resize_size[0])


def test_the_square_of_the_test_model():
    assert find_torchvision("kdcache_tiny").center_crop_ratio == CROP / RESIZE


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "googlenet"])
def test_torchvisions_own_builders_take_our_tensors(server, tmp_path, monkeypatch, name):
    entry = models.get_model_weights(name).DEFAULT
    monkeypatch.setattr(entry.value, "url", entry.url)  # given back after the test
    sized = {"init_weights": False} if name == "googlenet" else {}
    written = models.get_model(name, **sized)
    publish(entry, written.state_dict(), server.folder, server.address)
    data = manifest(1000)
    data.class_names[:] = entry.meta["categories"]
    teacher = open_teacher(name, workspace=Workspace(tmp_path), data=data, image_size=224)
    tensors = teacher.model.state_dict()
    for key, value in tensors.items():
        torch.testing.assert_close(value, written.state_dict()[key], rtol=0, atol=0)
    assert len(tensors) > 100
    assert teacher.reported_top1 == entry.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    # What torchvision changes beside the tensors where weights are given.
    assert getattr(teacher.model, "transform_input", None) is (True if sized else None)
