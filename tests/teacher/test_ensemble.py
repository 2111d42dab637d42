"""Several teachers as one: the mean against scipy in float64, identity, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from scipy.special import log_softmax, logsumexp, softmax
from torch import Tensor, nn

from kdcache.data.policy import CENTER_CROP_RATIO
from kdcache.errors import ConfigError, TeacherError
from kdcache.models.registry import make_model
from kdcache.options import BuildLogitsOptions, VerifyOptions
from kdcache.teacher.ensemble import Ensemble, EnsembleForward, mean_logits, open_ensemble
from kdcache.teacher.float32_head import Float32Head
from kdcache.teacher.forward import TeacherForward
from kdcache.teacher.member_settings import TeacherOptions
from kdcache.teacher.teacher import tensor_digest
from kdcache.workspace import Workspace
from tests.teacher.published_models import (
    CROP,
    MEAN,
    RESIZE,
    STD,
    TinyNet_Weights,
    publish,
    tiny_net,
)
from tests.teacher.test_teacher import manifest, write_teacher
from tests.teachers import other_projection, projection

PROJECTION, OTHER = "tests.teachers:projection", "tests.teachers:other_projection"
CPU = torch.device("cpu")


def open_all(
    *specs: str | Path,
    workspace: Path = Path("workspace"),
    archs: tuple[str, ...] = (),
    mode: str = "probabilities",
    teacher_size: int | None = None,
    **given: Any,
) -> Ensemble:
    return open_ensemble(
        [str(spec) for spec in specs],
        given=TeacherOptions(archs=archs, **given),
        mode=mode,
        workspace=Workspace(workspace),
        data=manifest(4),
        image_size=32,
        teacher_size=teacher_size,
    )


def pixels(count: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)


def answers(seed: int, *, members: int = 3, scale: float = 5) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [(scale * rng.standard_normal((4, 7))).astype(np.float32) for _ in range(members)]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.integers(1, 5), st.sampled_from([0.1, 5, 300]))
def test_the_mean_of_probabilities_is_that_of_float64(seed, members, scale):
    given_ = answers(seed, members=members, scale=scale)
    logs = [log_softmax(each.astype(np.float64), axis=1) for each in given_]
    expected = logsumexp(logs, axis=0) - np.log(members)
    found = mean_logits([torch.from_numpy(each) for each in given_], "probabilities")
    assert found.dtype == torch.float32
    # Rounded once: half a unit in the last place of float32, 2^-24, and float64's own roundings.
    np.testing.assert_allclose(found.numpy(), expected, rtol=2.0**-24 * 1.01, atol=1e-14)
    np.testing.assert_allclose(softmax(found.double().numpy(), axis=1).sum(axis=1), 1)


def test_the_mean_of_probabilities_is_that_of_the_softmaxes():
    given_ = answers(1)
    expected = np.mean([softmax(each.astype(np.float64), axis=1) for each in given_], axis=0)
    found = mean_logits([torch.from_numpy(each) for each in given_], "probabilities")
    np.testing.assert_allclose(np.exp(found.double().numpy()), expected, rtol=2e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.integers(1, 5), st.floats(-100, 100))
def test_the_mean_of_logits_is_centred_and_forgets_each_members_constant(seed, members, constant):
    given_ = answers(seed, members=members)
    expected = np.mean([each - each.mean(axis=1, keepdims=True) for each in given_], axis=0)
    moved = [torch.from_numpy(given_[0]) + constant, *map(torch.from_numpy, given_[1:])]
    found = mean_logits(moved, "logits").numpy()
    np.testing.assert_allclose(found, expected, atol=5e-5)  # float32 logits of up to 120
    np.testing.assert_allclose(found.mean(axis=1), 0, atol=1e-6)


def test_a_probability_that_float32_cannot_hold_keeps_its_logarithm():
    sure = torch.tensor([[400.0, 0.0, 0.0]])
    found = mean_logits([sure, sure], "probabilities")
    torch.testing.assert_close(found, torch.tensor([[0.0, -400.0, -400.0]]))


def test_each_member_has_its_own_normalisation_and_float32_head(server, tmp_path):
    published = tiny_net(1)
    publish(TinyNet_Weights.SECOND, published.state_dict(), server.folder, server.address)
    both = open_all("kdcache_tiny", PROJECTION, workspace=tmp_path, teacher_size=32)
    forward = both.forward(num_classes=4, device=CPU, precision="fp32")
    assert isinstance(forward, EnsembleForward)
    assert isinstance(forward.members[0].model.fc, Float32Head)
    images = pixels().double() / 255
    theirs = tiny_net(1).double()
    theirs.gain = 2.0
    per_channel = (1, 3, 1, 1)

    def normalised(mean: list[float], std: list[float]) -> Tensor:
        return (images - torch.tensor(mean).view(per_channel)) / torch.tensor(std).view(per_channel)

    about = manifest(4)
    with torch.inference_mode():
        expected = torch.stack(
            [
                theirs(normalised(MEAN, STD)),
                projection().double()(normalised(about.mean, about.std)),
            ]
        )
    expected = expected.softmax(dim=2).mean(dim=0).log()
    # float32 sums of 3072 products, of logits of up to 60.
    torch.testing.assert_close(forward(pixels()).double(), expected, rtol=1e-5, atol=1e-3)


def test_one_teacher_alone_is_itself():
    alone = open_all(PROJECTION, mode="logits")
    forward = alone.forward(num_classes=4, device=CPU, precision="fp32")
    assert isinstance(forward, TeacherForward)
    assert (alone.name, alone.mode, alone.digest) == (
        "projection",
        None,
        tensor_digest(projection()),
    )


def test_the_digest_covers_members_order_mode_and_normalisation(server, tmp_path):
    publish(TinyNet_Weights.SECOND, tiny_net(1).state_dict(), server.folder, server.address)
    own = Workspace(tmp_path).teacher("own")
    save_file(tiny_net(1).state_dict(), _folder(own))
    usual = open_all(PROJECTION, OTHER)
    others = [
        open_all(OTHER, PROJECTION),
        open_all(PROJECTION, OTHER, mode="logits"),
        open_all(PROJECTION, PROJECTION),
        open_all(PROJECTION, OTHER, OTHER),
        open_all(PROJECTION, "kdcache_tiny", workspace=tmp_path),
        open_all(PROJECTION, "own", archs=("kdcache_tiny",), workspace=tmp_path),
    ]
    assert len({usual.digest, *(each.digest for each in others)}) == 1 + len(others)
    assert open_all(PROJECTION, OTHER).digest == usual.digest
    assert usual.name == "projection+other_projection"
    assert usual.members[1].digest == tensor_digest(other_projection())


def _folder(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_the_teachers_see_the_size_that_published_weights_were_evaluated_at(server, tmp_path):
    publish(TinyNet_Weights.SECOND, tiny_net(1).state_dict(), server.folder, server.address)
    assert open_all(PROJECTION).image_size == 32
    found = open_all("kdcache_tiny", workspace=tmp_path)
    assert (found.image_size, found.center_crop_ratio) == (CROP, CROP / RESIZE)
    found = open_all("kdcache_tiny", PROJECTION, workspace=tmp_path)
    assert (found.image_size, found.center_crop_ratio) == (CROP, CROP / RESIZE)
    assert open_all("kdcache_tiny", workspace=tmp_path, teacher_size=40).image_size == 40
    assert open_all(PROJECTION).center_crop_ratio == CENTER_CROP_RATIO


def test_teachers_of_several_sizes_or_squares_need_a_decision(
    server, tmp_path, monkeypatch, caplog
):
    first, second = TinyNet_Weights.FIRST, TinyNet_Weights.SECOND
    for entry in (first, second):
        publish(entry, tiny_net(1).state_dict(), server.folder, server.address)
    larger = first.transforms.func, first.transforms.keywords | {"crop_size": 25}
    monkeypatch.setattr(first.value, "transforms", lambda: larger[0](**larger[1]))
    both = ("kdcache_tiny.FIRST", "kdcache_tiny.SECOND")
    with pytest.raises(ConfigError, match=r"tiny\.FIRST at 25 px, kdcache_tiny\.SECOND at 24 px"):
        open_all(*both, workspace=tmp_path)
    with caplog.at_level("INFO"):
        found = open_all(*both, workspace=tmp_path, teacher_size=32)
    assert (found.image_size, found.center_crop_ratio) == (32, CENTER_CROP_RATIO)
    expected = "centre crops of 0.9231 and 0.9615 of the short side; the clean view uses 0.875"
    assert expected in caplog.text


def test_archs_go_to_the_files_that_do_not_say_what_they_are(tmp_path):
    write_teacher(tmp_path / "says.safetensors", {"arch": "resnet8"})
    for name, model in (("a", "resnet8"), ("b", "resnet20")):
        tensors = make_model(model, num_classes=4, image_size=32).state_dict()
        save_file(tensors, tmp_path / f"{name}.safetensors")
    specs = [tmp_path / "a.safetensors", tmp_path / "says.safetensors", PROJECTION]
    specs.append(tmp_path / "b.safetensors")
    found = open_all(*specs, archs=("resnet8", "resnet20"))
    assert [member.arch for member in found.members] == [
        "resnet8",
        "resnet8",
        PROJECTION,
        "resnet20",
    ]
    assert found.name == "a+says+projection+b"
    for archs in ((), ("resnet8",), ("resnet8", "resnet20", "resnet8")):
        with pytest.raises(
            ConfigError, match=rf"arch is given {len(archs)} times, expected 2"
        ) as e:
            open_all(*specs, archs=archs)
        assert str(e.value).endswith(f"{specs[0]}, {specs[3]}")


def test_a_member_with_other_classes_is_refused_when_it_is_asked():
    forward = open_all(PROJECTION, "tests.teachers:five_classes").forward(
        num_classes=4, device=CPU, precision="fp32"
    )
    with pytest.raises(TeacherError, match=r"returns \(6, 5\) for 6 images, expected"):
        forward(pixels())


def test_features_of_an_ensemble_are_refused():
    with pytest.raises(ConfigError, match="features=True is given with 2 teachers"):
        BuildLogitsOptions(teacher=(PROJECTION, OTHER), features=True)


def test_a_mean_of_one_teacher_is_asked_wrongly():
    with pytest.raises(ConfigError, match="ensemble=logits: expected several teacher"):
        BuildLogitsOptions(teacher=PROJECTION, ensemble="logits")


def test_one_text_is_a_tuple_of_one():
    assert BuildLogitsOptions(teacher=PROJECTION).teacher == (PROJECTION,)
    assert VerifyOptions(teacher="a", arch="b").arch == ("b",)


def test_members_are_put_into_evaluation_mode():
    drops = [nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(3 * 32 * 32, 4)) for _ in "ab"]
    about = {"num_classes": 4, "mean": MEAN, "std": STD, "device": CPU, "precision": "fp32"}
    forward = EnsembleForward([TeacherForward(model, **about) for model in drops], "logits")
    torch.testing.assert_close(forward(pixels()), forward(pixels()), rtol=0, atol=0)
