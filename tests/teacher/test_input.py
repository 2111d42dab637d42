"""What a teacher gets: normalisation, size, stem and classes, as its owner states them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdcache.channels import IMAGENET_MEAN, IMAGENET_STD, NormalisationWords
from kdcache.errors import ConfigError, TeacherError, WeightsError
from kdcache.models.registry import make_model
from kdcache.teacher.teacher import tensor_digest
from tests.teacher.test_ensemble import CPU, open_all, pixels
from tests.teacher.test_teacher import CLASSES, open_it, write_teacher

NAMES = [f"class_{number}" for number in range(CLASSES)]
STATED: dict[str, Any] = {"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.25, 0.2]}
PROJECTION = "tests.teachers:projection"


def normalised(
    mean: list[float] | tuple[float, ...], std: list[float] | tuple[float, ...]
) -> Tensor:
    """Return the pixels of `pixels()` as torchvision's ToTensor and Normalize give them."""
    shape = (1, 3, 1, 1)
    return (pixels() / 255 - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


def logits_of(spec: str | Path, **given: Any) -> Tensor:
    teacher = open_all(spec, **given)
    return teacher.forward(num_classes=CLASSES, device=CPU, precision="fp32")(pixels())


@pytest.mark.parametrize(
    ("words", "mean", "std"),
    [
        (None, [0.5] * 3, [0.2] * 3),  # the data's
        (("data", "data"), [0.5] * 3, [0.2] * 3),
        (("imagenet", "imagenet"), IMAGENET_MEAN, IMAGENET_STD),
        (("none", "none"), [0.0] * 3, [1.0] * 3),
        (("0.1,0.2,0.3", "0.4,0.5,0.6"), [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]),
    ],
)
def test_a_checkpoint_answers_as_on_its_owners_images(tmp_path, caplog, words, mean, std):
    path = tmp_path / "own.safetensors"
    own = write_teacher(path, {"arch": "resnet8"}).eval()
    with torch.inference_mode():
        expected = own(normalised(mean, std))
    given = [NormalisationWords(*words)] if words else []
    with caplog.at_level("INFO"):
        found = logits_of(path, normalisations=given)
    # float32 through ten layers; another normalisation moves these logits by 0.01 and more.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    shown = ",".join(f"{value:.4g}" for value in mean)
    assert f"own.safetensors: images of 32 px, mean {shown}, std " in caplog.text
    assert ("does not state its mean and std" in caplog.text) is (words is None)


def test_a_file_that_states_its_normalisation_gets_it(tmp_path, caplog):
    path = tmp_path / "own.safetensors"
    own = write_teacher(path, {"arch": "resnet8"} | STATED).eval()
    with torch.inference_mode():
        expected = own(normalised(**STATED))
    torch.testing.assert_close(logits_of(path), expected, rtol=1e-4, atol=1e-4)
    assert "does not state" not in caplog.text
    with pytest.raises(ConfigError, match=r"own\.safetensors states mean 0\.4,0\.5,0\.6 and std"):
        open_it(path, normalisation=NormalisationWords("imagenet", "imagenet"))
    same = NormalisationWords("0.4,0.5,0.6", "0.3,0.25,0.2")
    assert open_it(path, normalisation=same).mean == STATED["mean"]


def test_an_ensemble_divides_the_words_among_those_that_state_nothing(tmp_path):
    write_teacher(tmp_path / "says.safetensors", {"arch": "resnet8"} | STATED)
    specs = (PROJECTION, tmp_path / "says.safetensors", "tests.teachers:other_projection")
    words = [NormalisationWords("none", "none"), NormalisationWords("0.25", "0.5")]
    found = open_all(*specs, normalisations=words)
    assert [member.mean for member in found.members] == [[0.0] * 3, STATED["mean"], [0.25] * 3]
    assert [member.std for member in found.members] == [[1.0] * 3, STATED["std"], [0.5] * 3]
    assert [member.mean for member in open_all(*specs).members][::2] == [[0.5] * 3] * 2
    for count in (1, 3):
        with pytest.raises(
            ConfigError, match=f"teacher_mean is given {count} times, expected 2: .*other_proj"
        ):
            open_all(*specs, normalisations=[words[0]] * count)
    with pytest.raises(ConfigError, match="teacher_output is given 2 times, expected 3"):
        open_all(*specs, outputs=["logits"] * 2)
    outputs = ["logits", "logits", "probabilities"]
    found = open_all(*specs, outputs=outputs)
    assert [member.output for member in found.members] == outputs


@pytest.mark.parametrize("model", ["mobilenet_v2", "shufflenet_v2_x0_5"])
def test_a_stem_that_no_tensor_tells_is_asked_for(tmp_path, model):
    path = tmp_path / "own.safetensors"
    write_teacher(path, {"arch": model}, model=model)
    for image_size in (32, 224):
        with pytest.raises(ConfigError, match=rf"stem is not given, .*{model} in .*own\.safet"):
            open_it(path, image_size=image_size)
    found = {stem: open_it(path, stem=stem) for stem in ("small", "standard")}
    images = torch.randn(2, 3, 32, 32)
    for stem, teacher in found.items():
        expected = make_model(model, num_classes=CLASSES, image_size=32, stem=stem).eval()
        expected.load_state_dict(teacher.model.state_dict())
        with torch.inference_mode():
            torch.testing.assert_close(teacher.model.eval()(images), expected(images))
        assert teacher.arch == f"{model} ({stem} stem)"
    # The same tensors are two teachers.
    assert len({teacher.digest for teacher in found.values()}) == 2
    write_teacher(path, {"arch": model, "stem": "standard"}, model=model)
    assert open_it(path).arch == f"{model} (standard stem)"
    with pytest.raises(ConfigError, match=r"stem=small: .* of a model with the standard stem"):
        open_it(path, stem="small")


def test_an_ensemble_divides_the_stems_among_the_files_that_need_one(tmp_path):
    for name, model in (("a", "mobilenet_v2"), ("b", "resnet8"), ("c", "shufflenet_v2_x0_5")):
        write_teacher(tmp_path / f"{name}.safetensors", {"arch": model}, model=model)
    specs = [tmp_path / f"{name}.safetensors" for name in "abc"]
    found = open_all(*specs, stems=["small", "standard"])
    assert [member.arch.partition(" ")[2] for member in found.members] == [
        "(small stem)",
        "",
        "(standard stem)",
    ]
    with pytest.raises(ConfigError, match=r"stem is given 1 times, expected 2: .*a\.saf.*c\.saf"):
        open_all(*specs, stems=["small"])


@pytest.mark.parametrize(
    ("spec", "arch", "match"),
    [(PROJECTION, None, "brings its own model"), ("own.safetensors", "resnet8", "only one stem")],
)
def test_a_stem_without_effect_is_refused(tmp_path, monkeypatch, spec, arch, match):
    monkeypatch.chdir(tmp_path)
    write_teacher(tmp_path / "own.safetensors", {})
    with pytest.raises(ConfigError, match=rf"stem=small: .*{match}"):
        open_it(spec, arch=arch, stem="small")


def test_a_file_is_used_at_the_size_that_it_was_trained_at(tmp_path, caplog):
    write_teacher(tmp_path / "a.safetensors", {"arch": "resnet8", "image_size": 48})
    write_teacher(tmp_path / "b.safetensors", {"arch": "resnet8", "image_size": 64})
    assert open_all(tmp_path / "a.safetensors").image_size == 48
    with caplog.at_level("INFO"):
        found = open_all(tmp_path / "a.safetensors", PROJECTION, teacher_size=32)
    assert found.image_size == 32
    assert "images of 32 px (trained at 48 px)" in caplog.text
    both = (tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    with pytest.raises(ConfigError, match=r"a\.safetensors at 48 px, .*b\.safetensors at 64 px"):
        open_all(*both)
    assert open_all(*both, teacher_size=64).image_size == 64


def test_a_model_of_one_size_names_that_size(tmp_path):
    path = tmp_path / "vit.safetensors"
    write_teacher(path, {"arch": "vit_b_32", "image_size": 96}, model="vit_b_32", image_size=96)
    assert open_all(path).image_size == 96
    with pytest.raises(WeightsError, match=r"trained at 96 px .* at 64 px\. Use teacher_size=96"):
        open_all(path, teacher_size=64)


def test_classes_that_a_file_names_are_compared(tmp_path, caplog):
    path = tmp_path / "own.safetensors"
    about = {"arch": "resnet8", "classes": CLASSES}
    write_teacher(path, about | {"class_names": [name.upper() for name in NAMES]})
    with caplog.at_level("INFO"):
        open_it(path)
    assert "names no classes" not in caplog.text
    write_teacher(path, about | {"class_names": [NAMES[0], NAMES[2], NAMES[1], NAMES[3]]})
    with pytest.raises(
        TeacherError, match=r"class 1 of the packed data is 'class_1', but 'class_2' in .*order"
    ):
        open_it(path)
    write_teacher(path, about | {"class_names": [*NAMES[:3], "other"]})
    with pytest.raises(TeacherError, match=r"class 3 .* but 'other' in .*the classes differ"):
        open_it(path)
    write_teacher(path, {"arch": "resnet8", "class_names": NAMES[:3]})
    with pytest.raises(TeacherError, match=r"own\.safetensors names 3 classes, expected 4"):
        open_it(path)


def test_metadata_that_cannot_be_are_refused_before_the_tensors_are_read(tmp_path):
    path = tmp_path / "own.safetensors"
    write_teacher(path, {"arch": "resnet8", "mean": [123.7, 116.3, 103.5], "std": [0.2] * 3})
    with pytest.raises(WeightsError, match=r"own\.safetensors .*mean is .*in \[0, 1\]"):
        open_it(path)


def test_the_users_code_that_raises_is_named(tmp_path, monkeypatch):
    (tmp_path / "kdcache_test_raises.py").write_text(
        "from torch import nn\n\n\n"
        "class Net(nn.Module):\n    def __init__(self, classes):\n        super().__init__()\n\n\n"
        "def fails():\n    raise KeyError('weights')\n\n\n"
        "def lazy():\n    return nn.Sequential(nn.Flatten(), nn.LazyLinear(4))\n\n\n"
        "def meta():\n    return nn.Linear(3, 4, device='meta')\n"
    )
    monkeypatch.chdir(tmp_path)
    for name, kind in (("Net", "TypeError: .*'classes'"), ("fails", "KeyError: 'weights'")):
        with pytest.raises(TeacherError, match=rf"kdcache_test_raises:{name} raised {kind}.*expec"):
            open_it(f"kdcache_test_raises:{name}")
    for name in ("lazy", "meta"):
        with pytest.raises(TeacherError, match=rf"raises:{name} returned .*weight has no values"):
            open_it(f"kdcache_test_raises:{name}")


def test_the_digest_is_that_of_the_tensors_unless_they_tell_too_little(tmp_path):
    path = tmp_path / "own.safetensors"
    written = write_teacher(path, {"arch": "resnet8"})
    assert open_it(path).digest == tensor_digest(written)
    as_probabilities = open_it(path, output="probabilities")
    assert as_probabilities.digest != tensor_digest(written)
    assert as_probabilities.arch == "resnet8 (probabilities)"


def test_probabilities_become_their_logarithm():
    class Softmax(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            sure = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(len(images) - 1, 4)
            return torch.cat([sure, torch.tensor([[0.5, 0.25, 0.125, 0.125]])])

    teacher = open_all(PROJECTION, outputs=["probabilities"]).members[0]
    forward = open_all(PROJECTION, outputs=["probabilities"]).forward(
        num_classes=4, device=CPU, precision="fp32"
    )
    assert teacher.output == "probabilities"
    forward.model = Softmax()
    found = forward(pixels())
    tiny = torch.log(torch.tensor(torch.finfo(torch.float32).tiny))
    torch.testing.assert_close(found[0], torch.stack([torch.tensor(0.0), tiny, tiny, tiny]))
    torch.testing.assert_close(found[-1].exp(), torch.tensor([0.5, 0.25, 0.125, 0.125]))
    forward.model = nn.Sequential(Softmax(), nn.Threshold(0.3, -1.0))
    assert forward(pixels()).isnan().any(dim=1).all()  # a negative value is no probability
