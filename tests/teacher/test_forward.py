"""The forward pass: normalisation, precision, evaluation mode, and the shape that is required."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import normalize

from kdcache.compute.device import resolve_device
from kdcache.compute.normalize import Normalise
from kdcache.compute.precision import autocast, matmul_precision
from kdcache.errors import TeacherError
from kdcache.models.registry import make_model
from kdcache.teacher.float32_head import Float32Head
from kdcache.teacher.forward import TeacherForward
from kdcache.teacher.teacher import tensor_digest

MEAN, STD = [0.49, 0.48, 0.45], [0.25, 0.2, 0.3]
CPU = torch.device("cpu")


def pixels(count: int = 6, size: int = 8) -> Tensor:
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    return images.contiguous(memory_format=torch.channels_last)


def forward_of(model: nn.Module, *, num_classes: int = 4, **options: Any) -> TeacherForward:
    return TeacherForward(
        model,
        **{
            "num_classes": num_classes,
            "mean": MEAN,
            "std": STD,
            "device": CPU,
            "precision": "fp32",
            **options,
        },
    )


class Answers(nn.Module):
    """Returns what it was made with."""

    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, _images: Tensor) -> object:
        return self.answer


class Mean(nn.Module):
    """Means over groups of features."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(2)


def convolutions(num_classes: int = 4) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, num_classes),
    )


def test_the_model_sees_normalised_images():
    images = pixels()
    logits = forward_of(nn.Sequential(nn.Flatten(), nn.Unflatten(1, (4, 48)), Mean()))(images)
    expected = normalize(images / 255, MEAN, STD).flatten(1).unflatten(1, (4, 48)).mean(2)
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_logits_are_float32_on_the_device_of_the_teacher(precision):
    logits = forward_of(convolutions(), precision=precision)(pixels())
    assert (logits.dtype, logits.shape, logits.device) == (torch.float32, (6, 4), CPU)


def test_logits_of_a_model_without_a_linear_head_are_float32_too():
    model = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten())
    assert forward_of(model, precision="bf16")(pixels()).dtype == torch.float32


def test_the_body_works_in_bfloat16_and_the_head_in_float32():
    model = convolutions()
    seen = {}
    model[0].register_forward_hook(lambda _m, _i, output: seen.update(body=output.dtype))
    model[3].register_forward_hook(lambda _m, _i, output: seen.update(features=output))
    weight, bias = model[4].weight.detach().clone(), model[4].bias.detach().clone()
    logits = forward_of(model, precision="bf16")(pixels())
    assert seen["body"] == torch.bfloat16
    expected = seen["features"].float() @ weight.T + bias
    # The sum of 64 products in another order; bfloat16 would be wrong by 2^-8.
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert not torch.equal(logits, logits.bfloat16().float())


def test_a_head_in_bfloat16_would_be_seen_by_the_test_above():
    model = convolutions().eval()
    with torch.inference_mode(), autocast(CPU, "bf16"):
        logits = model(pixels().float()).float()
    assert torch.equal(logits, logits.bfloat16().float())


def test_the_last_linear_layer_with_the_classes_is_the_head():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.Linear(4, 4), nn.Linear(4, 5))
    forward = forward_of(nn.Sequential(model, nn.Linear(5, 4), nn.Softplus()))
    kinds = {name: type(module) for name, module in forward.model.named_modules()}
    assert [name for name, kind in kinds.items() if kind is Float32Head] == ["1"]


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten()),
        nn.Sequential(
            nn.Flatten(), nn.Linear(192, 5), nn.Linear(5, 8), nn.Unflatten(1, (4, 2)), Mean()
        ),
    ],
    ids=["a convolution", "another size"],
)
def test_a_model_without_a_linear_head_inside_is_taken_as_it_is(model):
    forward = forward_of(model)
    assert not any(isinstance(module, Float32Head) for module in forward.model.modules())


def test_the_head_does_not_change_the_logits_in_float32():
    model = make_model("resnet8", num_classes=4, image_size=8).eval()
    images = pixels()
    with torch.inference_mode():
        normalised = Normalise(MEAN, STD)(images)
        expected = model.to(memory_format=torch.channels_last)(normalised)
    torch.testing.assert_close(forward_of(model)(images), expected, rtol=0, atol=0)  # same ops


def test_the_head_keeps_float32_where_the_body_has_tf32():
    linear = nn.Linear(8, 4)
    found = []
    linear.register_forward_hook(lambda *_: found.append(torch.get_float32_matmul_precision()))
    with matmul_precision("tf32"):
        assert torch.get_float32_matmul_precision() == "high"
        Float32Head(linear)(torch.randn(2, 8))
        assert torch.get_float32_matmul_precision() == "high"
    assert found == ["highest"]


@pytest.mark.parametrize("wrap", [nn.Module.train, nn.Module.eval])
def test_the_model_is_in_evaluation_mode(wrap):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.9), nn.Flatten(), nn.Linear(192, 4))
    forward = forward_of(wrap(model))
    assert not any(module.training for module in forward.model.modules())
    images = pixels()
    before = tensor_digest(forward.model)
    together = forward(images)
    alone = torch.cat([forward(images[place : place + 1]) for place in range(len(images))])
    # Another batch size may add in another order; a batch norm in training mode is off by 0.1.
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert tensor_digest(forward.model) == before


def test_logits_carry_no_gradient():
    assert not forward_of(convolutions())(pixels()).requires_grad


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (torch.zeros(6, 5), r"\(6, 5\)"),
        (torch.zeros(6, 3), r"\(6, 3\)"),
        (torch.zeros(5, 4), r"\(5, 4\)"),
        (torch.zeros(6, 4, 1, 1), r"\(6, 4, 1, 1\)"),
        (torch.zeros(6), r"\(6,\)"),
    ],
    ids=lambda value: str(tuple(value.shape)) if isinstance(value, Tensor) else "",
)
def test_another_shape_than_one_logit_for_each_class_is_refused(answer, found):
    with pytest.raises(TeacherError, match=rf"returns {found} for 6 images, .*\(6, 4\)") as error:
        forward_of(Answers(answer))(pixels())
    assert "kdcache train-teacher" in str(error.value)


@pytest.mark.parametrize(
    ("answer", "found"),
    [((torch.zeros(6, 4),), "tuple"), ({"logits": torch.zeros(6, 4)}, "dict"), (None, "NoneType")],
    ids=["tuple", "dict", "nothing"],
)
def test_an_answer_that_is_no_tensor_is_refused_and_the_remedy_named(answer, found):
    with pytest.raises(TeacherError, match=rf"returns {found} for 6 images.*output\.logits"):
        forward_of(Answers(answer))(pixels())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_type_are_widened_and_it_is_said(dtype, caplog):
    model, images = convolutions(), pixels()
    rounded = copy.deepcopy(model).to(dtype).float()
    with caplog.at_level(logging.INFO):
        logits = forward_of(model.to(dtype))(images)
    assert f"the teacher's weights are {dtype}; they are converted to float32" in caplog.text
    assert torch.equal(logits, forward_of(rounded)(images))


def test_nothing_is_said_of_float32_weights(caplog):
    with caplog.at_level(logging.INFO):
        forward_of(convolutions())
    assert caplog.text == ""


def test_a_teacher_that_cannot_be_captured_says_why_and_gives_the_same_logits(caplog):
    forward, images = forward_of(convolutions(), keep_features=True), pixels()
    before = forward(images)
    forward.capture(images)
    assert "cannot be captured as a CUDA graph (images are on cpu" in caplog.text
    assert torch.equal(forward(images), before)
    assert forward.features is not None
    assert forward.features.shape == (6, 64)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_a_gpu_answers_like_the_cpu(precision):
    model = make_model("resnet8", num_classes=4, image_size=8)
    images = pixels()
    expected = forward_of(model)(images)
    found = forward_of(model, device=resolve_device("auto"), precision=precision)(images)
    assert (found.dtype, found.device.type) == (torch.float32, "cuda")
    # bfloat16 keeps 8 bits through 9 layers.
    torch.testing.assert_close(found.cpu(), expected, rtol=0.1, atol=0.1)


class Branching(nn.Module):
    """Waits for its own results, which no graph can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = convolutions()

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images if images.mean().item() > 1e9 else -images)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_a_captured_teacher_gives_other_batches_the_same_bits(precision):
    device = resolve_device("auto")
    model = make_model("resnet8", num_classes=4, image_size=8)
    forward = forward_of(model, device=device, precision=precision, keep_features=True)
    batches = [pixels().to(device) for _ in range(3)]
    expected = [(forward(images).clone(), forward.features.clone()) for images in batches]
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    forward.capture(batches[0])
    calls.clear()
    found = [(forward(images).clone(), forward.features.clone()) for images in batches]
    assert calls == []  # replayed
    for (logits, features), (logits_before, features_before) in zip(found, expected, strict=True):
        assert torch.equal(logits, logits_before)
        assert torch.equal(features, features_before)
    assert torch.equal(forward(batches[1][:4]), expected[1][0][:4])
    assert forward.features.shape == (4, 64)
    assert calls == []
    forward(pixels(7).to(device))
    assert calls  # too many for it


@pytest.mark.gpu
def test_a_teacher_that_waits_for_its_results_is_not_captured_and_still_runs(caplog):
    device = resolve_device("auto")
    forward, images = forward_of(Branching(), device=device), pixels().to(device)
    expected = forward(images).clone()
    forward.capture(images)
    assert "cannot be captured as a CUDA graph" in caplog.text
    assert torch.equal(forward(images), expected)
    assert torch.equal(forward(images.flip(0)), expected.flip(0))
