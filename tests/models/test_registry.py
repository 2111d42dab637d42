"""The models by name: shapes, stems, and the sizes that the papers state."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from kdcache.errors import ConfigError
from kdcache.models.cifar_resnet import BasicBlock
from kdcache.models.registry import (
    MODELS,
    default_stem,
    has_hidden_stem,
    has_two_stems,
    make_model,
    require_trainable,
    stem_of_shapes,
)
from kdcache.models.wide_resnet import PreActivationBlock, WideResNet

IMAGENET_MODELS = (
    "resnet18",
    "resnet34",
    "resnet50",
    "mobilenet_v2",
    "shufflenet_v2_x0_5",
    "shufflenet_v2_x1_0",
)


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def size_after(model: nn.Module, name: str, image_size: int) -> tuple[int, ...]:
    """Height and width that a submodule returns for an image, without any arithmetic."""
    sizes: list[tuple[int, ...]] = []

    def note(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        sizes.append(tuple(output.shape[2:]))

    model.get_submodule(name).register_forward_hook(note)
    model(torch.zeros(2, 3, image_size, image_size, device="meta"))
    return sizes[0]


@pytest.mark.parametrize("name", MODELS)
def test_every_model_gives_one_row_of_logits_for_each_image(name):
    model = make_model(name, num_classes=7, image_size=32).eval()
    with torch.inference_mode():
        logits = model(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("name", "image_size"),
    [("resnext50_32x4d", 32), ("vit_b_32", 96), ("maxvit_t", 224), ("googlenet", 64)],
)
def test_other_classifiers_of_torchvision_are_made_for_the_size(name, image_size):
    with torch.device("meta"):
        model = make_model(name, num_classes=7, image_size=image_size).eval()
        assert model(torch.zeros(2, 3, image_size, image_size)).shape == (2, 7)


@pytest.mark.parametrize("name", ["maxvit_t", "vit_b_32"])
def test_a_size_that_a_model_cannot_be_made_for_is_named(name):
    with pytest.raises(ConfigError, match=rf"'{name}' for images of 65 px, .*divisible"):
        make_model(name, num_classes=7, image_size=65)


@pytest.mark.parametrize("name", ["fcn_resnet50", "r3d_18", "quantized_resnet18"])
def test_a_model_for_something_else_is_no_classifier(name):
    with pytest.raises(ConfigError, match=f"model={name}: .* another classifier"):
        make_model(name, num_classes=7, image_size=32)


def test_the_small_models_take_any_image_size():
    with torch.device("meta"):
        model = make_model("resnet8", num_classes=7, image_size=8)
        assert model(torch.zeros(2, 3, 9, 17)).shape == (2, 7)


def test_an_unknown_name_lists_those_that_are_known():
    with pytest.raises(ConfigError, match="model=resnet19: ") as error:
        make_model("resnet19", num_classes=7, image_size=32)
    assert all(name in str(error.value) for name in MODELS)


@pytest.mark.parametrize("name", ["resnet8", "squeezenet1_1", "vit_b_16"])
def test_every_classifier_can_be_trained(name):
    require_trainable(name, parameter="model")


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("resnet19", "resnet8"),
        ("fcn_resnet50", "classifier"),
        ("inception_v3", "auxiliary logits"),
        ("timm:no_such_model", "list_models"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name(name, rule):
    if name.startswith("timm:"):
        pytest.importorskip("timm", reason="needs timm: pip install 'kdcache[timm]'")
    with pytest.raises(ConfigError, match=f"model=.?{name}.*{rule}"):
        require_trainable(name, parameter="model")


@pytest.mark.parametrize("image_size", [32, 64])
@pytest.mark.parametrize(
    ("name", "last_of_stem"),
    [
        ("resnet18", "maxpool"),
        ("resnet34", "maxpool"),
        ("resnet50", "maxpool"),
        ("mobilenet_v2", "features.0"),
        ("shufflenet_v2_x1_0", "maxpool"),
    ],
)
def test_the_stem_keeps_the_size_of_small_images(name, last_of_stem, image_size):
    with torch.device("meta"):
        model = make_model(name, num_classes=7, image_size=image_size)
        assert size_after(model, last_of_stem, image_size) == (image_size, image_size)


@pytest.mark.parametrize(
    ("name", "last_of_stem", "image_size", "expected"),
    [
        ("resnet18", "maxpool", 224, 56),
        ("resnet34", "maxpool", 224, 56),
        ("resnet50", "maxpool", 224, 56),
        ("mobilenet_v2", "features.0", 224, 112),
        ("shufflenet_v2_x1_0", "maxpool", 224, 56),
        ("resnet50", "maxpool", 65, 17),
        ("mobilenet_v2", "features.0", 65, 33),
    ],
)
def test_the_stem_shrinks_large_images_as_published(name, last_of_stem, image_size, expected):
    with torch.device("meta"):
        model = make_model(name, num_classes=7, image_size=image_size)
        assert size_after(model, last_of_stem, image_size) == (expected, expected)


@pytest.mark.parametrize("name", IMAGENET_MODELS)
def test_a_model_for_large_images_has_the_tensors_of_torchvision(name):
    with torch.device("meta"):
        ours = make_model(name, num_classes=1000, image_size=224).state_dict()
        theirs = getattr(torchvision.models, name)().state_dict()
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in theirs.items()
    }


@pytest.mark.parametrize(
    ("name", "in_paper"), [("resnet20", 0.27e6), ("resnet32", 0.46e6), ("resnet56", 0.85e6)]
)
def test_the_small_models_have_the_parameters_of_the_paper(name, in_paper):
    # He et al. 2016, table 6. Counted here from section 4.2: a first convolution, 2n of each
    # width, shortcuts without parameters, batch norms of two numbers a channel, and a classifier.
    n = (int(name.removeprefix("resnet")) - 2) // 6
    weights = 9 * 3 * 16
    norms = 2 * 16
    before = 16
    for width in (16, 32, 64):
        weights += 9 * before * width + (2 * n - 1) * 9 * width * width
        norms += 2 * 2 * n * width
        before = width
    with torch.device("meta"):
        model = make_model(name, num_classes=10, image_size=32)
    assert num_parameters(model) == weights + norms + 64 * 10 + 10
    assert num_parameters(model) == pytest.approx(in_paper, abs=0.005e6)


@pytest.mark.parametrize("name", ["resnet8", "resnet20", "resnet32", "resnet56"])
def test_the_depth_counts_the_layers_with_weights(name):
    with torch.device("meta"):
        model = make_model(name, num_classes=10, image_size=32)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == int(name.removeprefix("resnet"))


@pytest.mark.parametrize(("stage", "expected"), [(0, 32), (1, 16), (2, 8)])
def test_the_small_models_halve_the_size_in_the_second_and_third_stage(stage, expected):
    with torch.device("meta"):
        model = make_model("resnet8", num_classes=10, image_size=32)
        assert size_after(model, f"layers.{stage}", 32) == (expected, expected)


def test_a_shortcut_without_parameters_skips_pixels_and_pads_channels_with_zeros():
    block = BasicBlock(2, 6, stride=2).eval()
    nn.init.zeros_(block.conv2.weight)
    images = torch.randn(3, 2, 5, 5)
    shortcut = torch.zeros(3, 6, 3, 3)
    shortcut[:, 2:4] = images[:, :, ::2, ::2]
    torch.testing.assert_close(block(images), shortcut.relu(), rtol=0, atol=0)  # added to zeros


def test_a_block_adds_its_input_before_the_last_relu():
    block = BasicBlock(4, 4, stride=1).eval()
    images = torch.randn(3, 4, 6, 6)
    hidden = block.bn2(block.conv2(block.bn1(block.conv1(images)).relu()))
    # The same operations in the same order: nothing may differ.
    torch.testing.assert_close(block(images), (hidden + images).relu(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "in_paper"), [("wrn-16-2", 0.7e6), ("wrn-40-2", 2.2e6), ("vgg8", 3.965e6)]
)
def test_the_other_small_models_have_the_parameters_of_their_papers(name, in_paper):
    """Zagoruyko and Komodakis 2016, table 4; vgg8's is counted in its own terms below."""
    with torch.device("meta"):
        model = make_model(name, num_classes=100, image_size=32)
    assert num_parameters(model) == pytest.approx(in_paper, rel=0.03)


@pytest.mark.parametrize(("name", "depth"), [("wrn-16-2", 16), ("wrn-40-2", 40), ("vgg8", 8)])
def test_the_name_of_the_other_small_models_tells_their_depth(name, depth):
    """WRN counts its three 1x1 shortcuts among the layers; vgg8 replaces two of VGG's three linear
    layers by a mean."""
    with torch.device("meta"):
        model = make_model(name, num_classes=10, image_size=32)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == {"vgg8": depth - 2}.get(name, depth + 1)


@pytest.mark.parametrize(
    ("name", "submodule", "expected"),
    [
        ("wrn-16-2", "layers.1", 32),
        ("wrn-16-2", "layers.3", 16),
        ("wrn-16-2", "layers.5", 8),
        ("wrn-40-2", "layers.17", 8),
        ("vgg8", "14", 4),
    ],
)
def test_the_other_small_models_halve_the_size_where_their_papers_do(name, submodule, expected):
    with torch.device("meta"):
        model = make_model(name, num_classes=10, image_size=32)
        assert size_after(model, submodule, 32) == (expected, expected)


@pytest.mark.parametrize("width", [1, 3])
def test_a_wide_network_has_the_channels_of_its_width(width):
    with torch.device("meta"):
        model = WideResNet(10, width, 10)
    assert model.fc.in_features == 64 * width
    widths = [block.conv2.out_channels for block in model.layers]
    assert widths == [16 * width, 32 * width, 64 * width]


def test_a_pre_activation_block_adds_its_input_as_it_is():
    block = PreActivationBlock(4, 4, stride=1).eval()
    images = torch.randn(3, 4, 6, 6)
    hidden = block.conv1(block.bn1(images).relu())
    expected = block.conv2(block.bn2(hidden).relu()) + images  # negative numbers stay
    torch.testing.assert_close(block(images), expected, rtol=0, atol=0)


def test_a_block_of_other_channels_projects_what_was_activated():
    block = PreActivationBlock(4, 6, stride=2).eval()
    nn.init.zeros_(block.conv2.weight)
    images = torch.randn(3, 4, 6, 6)
    activated = block.bn1(images).relu()
    expected = torch.einsum(
        "oi,bihw->bohw", block.shortcut.weight[:, :, 0, 0], activated[:, :, ::2, ::2]
    )
    torch.testing.assert_close(block(images), expected)


def test_weights_are_drawn_from_the_generator_of_torch():
    def first(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return make_model("resnet8", num_classes=7, image_size=32).conv1.weight

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


@pytest.mark.parametrize("name", IMAGENET_MODELS)
def test_a_stem_that_is_given_goes_before_the_image_size(name):
    layer = {"m": "features.0", "s": "maxpool", "r": "maxpool"}[name[0]]
    with torch.device("meta"):
        small = make_model(name, num_classes=7, image_size=224, stem="small")
        standard = make_model(name, num_classes=7, image_size=32, stem="standard")
    assert size_after(small, layer, 224) == (224, 224)
    assert max(size_after(standard, layer, 32)) <= 16


@pytest.mark.parametrize("name", IMAGENET_MODELS)
def test_the_tensors_tell_the_stem_or_the_model_says_that_they_do_not(name):
    assert has_two_stems(name)
    for stem in ("small", "standard"):
        with torch.device("meta"):
            tensors = make_model(name, num_classes=7, image_size=32, stem=stem).state_dict()
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        seen = stem_of_shapes(name, shapes)
        assert seen == (None if has_hidden_stem(name) else stem)
    with torch.device("meta"):
        one, other = (
            make_model(name, num_classes=7, image_size=32, stem=stem)
            for stem in ("small", "standard")
        )
    same = [tuple(tensor.shape) for tensor in one.state_dict().values()] == [
        tuple(tensor.shape) for tensor in other.state_dict().values()
    ]
    assert has_hidden_stem(name) is same


@pytest.mark.parametrize("name", ["resnet8", "vit_b_32", "resnet101"])
def test_a_model_with_one_stem_takes_none(name):
    assert default_stem(name, 32) is None
    with pytest.raises(ConfigError, match=f"stem=small: {name} has only one stem"):
        make_model(name, num_classes=7, image_size=32, stem="small")


@pytest.mark.parametrize(("image_size", "stem"), [(64, "small"), (65, "standard")])
def test_a_new_model_has_the_stem_of_its_image_size(image_size, stem):
    assert default_stem("mobilenet_v2", image_size) == stem


@pytest.mark.parametrize("name", ["num_classes", "image_size"])
@pytest.mark.parametrize("value", [0, -8, 1.5, "10", True], ids=repr)
def test_a_size_that_is_no_integer_above_0_is_named(name, value):
    sizes = {"num_classes": 10, "image_size": 32} | {name: value}
    with pytest.raises(ConfigError, match=f"^{name}=.*: expected an integer of at least 1"):
        make_model("resnet8", **sizes)
