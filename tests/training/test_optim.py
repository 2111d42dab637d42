"""Optimisers, what decays, and defaults."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from kdcache.models.registry import make_model
from kdcache.training.optim import (
    MOMENTUM,
    WEIGHT_DECAY,
    OptimSettings,
    default_batch_size,
    default_epochs,
    default_lr,
    make_optimizer,
)

SGD = OptimSettings(lr=0.5)
ADAMW = OptimSettings(optimizer="adamw", lr=0.5, weight_decay=0.02)


def decay_of(model: nn.Module, settings: OptimSettings) -> dict[int, float]:
    return {
        id(parameter): group["weight_decay"]
        for group in make_optimizer(model, settings).param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize("settings", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2"])
def test_norms_and_biases_are_not_decayed_and_all_else_is(name, settings):
    model = make_model(name, num_classes=4, image_size=32)
    decay = decay_of(model, settings)
    assert len(decay) == len(list(model.parameters()))
    for module in model.modules():
        for kind, parameter in module.named_parameters(recurse=False):
            decayed = isinstance(module, (nn.Conv2d, nn.Linear)) and kind == "weight"
            assert decay[id(parameter)] == (settings.weight_decay if decayed else 0)


def test_position_embeddings_and_class_tokens_are_not_decayed():
    model = torchvision.models.VisionTransformer(
        image_size=8, patch_size=4, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8
    )
    decay = decay_of(model, ADAMW)
    by_name = {name: decay[id(parameter)] for name, parameter in model.named_parameters()}
    for name in ("class_token", "encoder.pos_embedding", "encoder.ln.weight", "conv_proj.bias"):
        assert by_name[name] == 0, name
    attention = "encoder.layers.encoder_layer_0.self_attention"
    for name in (f"{attention}.in_proj_weight", "conv_proj.weight", "heads.head.weight"):
        assert by_name[name] == 0.02, name


def steps_of(settings: OptimSettings, gradients: list[float]) -> list[float]:
    """The values of a weight that starts at 1, after each step."""
    model = nn.Module()
    model.weight = nn.Parameter(torch.tensor([[1.0]], dtype=torch.float64))
    optimizer = make_optimizer(model, settings)
    values = []
    for gradient in gradients:
        model.weight.grad = torch.tensor([[gradient]], dtype=torch.float64)
        optimizer.step()
        values.append(model.weight.item())
    return values


@pytest.mark.parametrize("momentum", [MOMENTUM, 0.5, 0.0])
def test_a_step_is_sgd_with_nesterov_momentum(momentum):
    gradients = [0.3, -0.2, 0.1]
    found = steps_of(OptimSettings(lr=0.5, momentum=momentum), gradients)
    value, velocity = 1.0, 0.0
    for gradient, after in zip(gradients, found, strict=True):
        # torch starts the buffer at the first gradient; from zero that is the same.
        decayed = gradient + WEIGHT_DECAY["sgd"] * value
        velocity = momentum * velocity + decayed
        value -= 0.5 * (decayed + momentum * velocity)
        torch.testing.assert_close(after, value, rtol=1e-14, atol=0)


def test_a_step_is_adam_with_decay_beside_the_gradient():
    gradients = [0.3, -0.2, 0.1]
    found = steps_of(ADAMW, gradients)
    value, mean, square = 1.0, 0.0, 0.0
    for step, (gradient, after) in enumerate(zip(gradients, found, strict=True), start=1):
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        value *= 1 - 0.5 * 0.02
        value -= 0.5 * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)) ** 0.5 + 1e-8)
        torch.testing.assert_close(after, value, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("num_samples", "expected"), [(1, 32), (4_999, 32), (5_000, 128)])
def test_small_sets_get_small_batches(num_samples, expected):
    assert default_batch_size(num_samples) == expected


def test_the_rate_is_in_proportion_to_the_samples_of_a_step():
    assert default_lr(128, "resnet8") == 0.1
    assert default_lr(32, "resnet56") == 0.025
    assert default_lr(256, "resnet50") == 0.04
    assert default_lr(256, "resnet50", "adamw") == default_lr(256, "resnet8", "adamw") == 0.002


@pytest.mark.parametrize(
    ("steps_per_epoch", "expected"), [(391, 30), (32, 47), (1, 1_500), (2, 750)]
)
def test_small_sets_get_more_epochs(steps_per_epoch, expected):
    assert default_epochs(steps_per_epoch, min_epochs=30, min_steps=1_500) == expected
