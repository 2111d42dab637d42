"""What `--teacher` may name, and what is refused."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kdcache.data.beton_manifest import BetonManifest
from kdcache.errors import ConfigError, TeacherError, WeightsError
from kdcache.models.registry import make_model
from kdcache.models.weights import save_weights
from kdcache.teacher.member_settings import MemberSettings
from kdcache.teacher.teacher import Teacher, open_teacher, tensor_digest
from kdcache.workspace import Workspace
from tests.teachers import projection

CLASSES = 4


def manifest(classes: int) -> BetonManifest:
    return BetonManifest(
        format_version=1,
        split="train",
        samples=10,
        classes=classes,
        class_names=[f"class_{number}" for number in range(classes)],
        image_size=32,
        policy="clean",
        mean=[0.5, 0.5, 0.5],
        std=[0.2, 0.2, 0.2],
        write_mode="raw",
        fingerprint="0" * 64,
        beton_bytes=0,
        tables_digest="",
        digests_digest="",
        names_digest="",
        made_from={},
    )


def open_it(
    spec: str | Path,
    workspace: Path = Path("workspace"),
    *,
    arch: str | None = None,
    classes: int = CLASSES,
    image_size: int = 32,
    **settings: Any,
) -> Teacher:
    return open_teacher(
        str(spec),
        settings=MemberSettings(arch=arch, **settings),
        workspace=Workspace(workspace),
        data=manifest(classes),
        image_size=image_size,
    )


def write_teacher(
    path: Path, about: dict[str, Any], *, model: str = "resnet8", image_size: int = 32
) -> nn.Module:
    """Write the weights of a fresh model and return it."""
    written = make_model(model, num_classes=CLASSES, image_size=image_size)
    save_weights(path, written.state_dict(), about)
    return written


def assert_same_weights(found: nn.Module, expected: nn.Module) -> None:
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, rtol=0, atol=0)


def test_a_file_that_says_what_it_is_needs_nothing_more(tmp_path):
    path = tmp_path / "mine.safetensors"
    written = write_teacher(path, {"arch": "resnet8", "classes": CLASSES})
    teacher = open_it(path)
    assert (teacher.name, teacher.arch) == ("mine", "resnet8")
    assert_same_weights(teacher.model, written)


def test_a_file_of_another_program_opens_with_arch(tmp_path):
    path = tmp_path / "theirs.safetensors"
    written = make_model("resnet20", num_classes=CLASSES, image_size=32)
    save_file(written.state_dict(), path)
    teacher = open_it(path, arch="resnet20")
    assert (teacher.name, teacher.arch) == ("theirs", "resnet20")
    assert_same_weights(teacher.model, written)


def test_a_file_needs_no_suffix(tmp_path):
    write_teacher(tmp_path / "weights", {"arch": "resnet8"})
    assert open_it(tmp_path / "weights").name == "weights"


def test_a_name_is_looked_up_in_the_workspace(tmp_path):
    path = tmp_path / "teachers" / "resnet8.safetensors"
    written = write_teacher(path, {"arch": "resnet8", "classes": CLASSES})
    teacher = open_it("resnet8", tmp_path)
    assert (teacher.name, teacher.arch) == ("resnet8", "resnet8")
    assert_same_weights(teacher.model, written)


def test_a_path_goes_before_a_name_in_the_workspace(tmp_path, monkeypatch):
    write_teacher(tmp_path / "teachers" / "resnet8.safetensors", {"arch": "resnet8"})
    here = write_teacher(tmp_path / "resnet8", {"arch": "resnet8"})
    monkeypatch.chdir(tmp_path)
    assert_same_weights(open_it("resnet8", tmp_path).model, here)


@pytest.mark.parametrize(
    ("spec", "missing"),
    [
        ("resnet8", "teachers/resnet8.safetensors does not exist"),
        ("folder/resnet50.safetensors", "folder/resnet50.safetensors does not exist"),
    ],
)
def test_a_teacher_that_does_not_exist_names_the_command_that_trains_one(tmp_path, spec, missing):
    with pytest.raises(ConfigError, match=missing) as error:
        open_it(spec, tmp_path)
    assert str(error.value).endswith(f"kdcache train-teacher --model {Path(spec).stem}")


def test_a_folder_is_no_teacher(tmp_path):
    folder = tmp_path / "weights.safetensors"
    folder.mkdir()
    with pytest.raises(ConfigError, match=r"weights\.safetensors does not exist"):
        open_it(folder)


def test_arch_is_asked_for_where_the_file_does_not_say(tmp_path):
    path = tmp_path / "silent.safetensors"
    write_teacher(path, {})
    with pytest.raises(ConfigError, match=r"arch is missing, .*silent\.safetensors"):
        open_it(path)


def test_arch_is_refused_where_the_file_says_otherwise(tmp_path):
    path = tmp_path / "mine.safetensors"
    write_teacher(path, {"arch": "resnet8"})
    with pytest.raises(ConfigError, match=r"arch=resnet20: .* is of the model resnet8"):
        open_it(path, arch="resnet20")
    assert open_it(path, arch="resnet8").arch == "resnet8"


def test_arch_is_refused_for_a_callable(tmp_path):
    with pytest.raises(ConfigError, match=r"arch=resnet8: tests\.teachers:projection"):
        open_it("tests.teachers:projection", tmp_path, arch="resnet8")


def test_an_unknown_arch_lists_the_known(tmp_path):
    path = tmp_path / "silent.safetensors"
    write_teacher(path, {})
    with pytest.raises(ConfigError, match=r"model=resnet9: expected one of resnet8, resnet20"):
        open_it(path, arch="resnet9")


def test_another_number_of_classes_names_the_command_that_trains_a_fitting_one(tmp_path):
    path = tmp_path / "mine.safetensors"
    write_teacher(path, {"arch": "resnet8", "classes": CLASSES})
    with pytest.raises(TeacherError, match=r"mine\.safetensors has 4 classes, expected 6") as error:
        open_it(path, classes=6)
    assert "kdcache train-teacher --model resnet8" in str(error.value)


def test_another_number_of_classes_is_found_where_the_file_does_not_say(tmp_path):
    path = tmp_path / "theirs.safetensors"
    write_teacher(path, {})
    with pytest.raises(WeightsError, match=r"fc\.bias is \(4,\), expected \(6,\)"):
        open_it(path, arch="resnet8", classes=6)


def test_the_stem_of_a_resnet_is_read_from_its_tensors(tmp_path, caplog):
    path = tmp_path / "mine.safetensors"
    small = write_teacher(path, {"arch": "resnet18"}, model="resnet18", image_size=32)
    with caplog.at_level("INFO"):
        assert_same_weights(open_it(path, image_size=224).model, small)
    assert "mine.safetensors: images of 224 px, mean 0.5,0.5,0.5, std 0.2,0.2,0.2, small stem" in (
        caplog.text
    )
    standard = write_teacher(path, {"arch": "resnet18"}, model="resnet18", image_size=224)
    opened = open_it(path, image_size=32).model
    assert_same_weights(opened, standard)
    assert opened.conv1.stride == (2, 2)
    with pytest.raises(
        ConfigError, match=r"stem=small: .*mine\.safetensors is of .* standard stem"
    ):
        open_it(path, stem="small")


def test_a_callable_returns_its_own_model():
    teacher = open_it("tests.teachers:projection")
    assert (teacher.name, teacher.arch) == ("projection", "tests.teachers:projection")
    assert_same_weights(teacher.model, projection())


def test_a_module_in_the_current_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "kdcache_test_teacher_here.py").write_text(
        "from torch import nn\n\ndef make():\n    return nn.Linear(2, 4)\n"
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert isinstance(open_it("kdcache_test_teacher_here:make").model, nn.Linear)
    assert sys.path == before


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("tests.no_such:make", "No module named 'tests.no_such'"),
        ("tests.teachers:no_such", "no attribute 'no_such'"),
        ("tests.teachers:torch", "torch is module"),
    ],
    ids=["module", "attribute", "not callable"],
)
def test_a_callable_that_cannot_be_found_is_asked_wrongly(spec, match):
    before = list(sys.path)
    with pytest.raises(ConfigError, match=match) as error:
        open_it(spec)
    assert f"teacher={spec}: expected module:callable" in str(error.value)
    assert sys.path == before


def test_a_callable_that_returns_no_module_is_refused():
    with pytest.raises(TeacherError, match="not_a_module returned str"):
        open_it("tests.teachers:not_a_module")


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "teachers" / "resnet8.safetensors"
    write_teacher(path, {"arch": "resnet8"})
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(WeightsError, match=r"resnet8\.safetensors is not readable"):
        open_it("resnet8", tmp_path)


def test_the_digest_is_that_of_the_tensors_not_of_the_file(tmp_path):
    written = write_teacher(tmp_path / "a.safetensors", {"arch": "resnet8"})
    save_weights(tmp_path / "b.safetensors", written.state_dict(), {"arch": "resnet8", "seed": 1})
    digests = {open_it(tmp_path / f"{name}.safetensors").digest for name in "ab"}
    assert digests == {tensor_digest(written)}


def test_the_digest_is_a_sha256_over_names_types_shapes_and_values():
    model = nn.Linear(2, 3).bfloat16()
    model.register_buffer("count", torch.tensor(5))
    content = hashlib.sha256()
    for name, numpy_bytes in (
        ("weight:torch.bfloat16:(3, 2);", model.weight.detach().view(torch.int16).numpy()),
        ("bias:torch.bfloat16:(3,);", model.bias.detach().view(torch.int16).numpy()),
        ("count:torch.int64:();", model.count.numpy()),
    ):
        content.update(name.encode() + numpy_bytes.tobytes())
    assert tensor_digest(model) == content.hexdigest()


def test_the_digest_changes_with_one_bit_of_one_value():
    model = nn.Linear(2, 3)
    before = tensor_digest(model)
    with torch.no_grad():
        model.bias[2] = torch.nextafter(model.bias[2], torch.tensor(9.0))
    assert tensor_digest(model) != before
