"""Run the last linear layer of a model in float32, whatever the precision of its body."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdcache.compute.precision import matmul_precision


class Float32Head(nn.Module):
    """A linear layer that computes in float32, whatever the precision around it.

    Attributes:
        features: (B, F) input of the last call; None before the first.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.features: Tensor | None = None

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, F) features of any float type to (B, C) float32 logits."""
        self.features = features
        with torch.autocast(features.device.type, enabled=False), matmul_precision("fp32"):
            return self.linear(features.float())


def with_float32_head(model: nn.Module, num_classes: int) -> tuple[nn.Module, Float32Head | None]:
    """Wrap the last linear layer with C outputs; return the model and the head, or None."""
    heads = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == num_classes
    ]
    if not heads:
        return model, None
    name, linear = heads[-1]
    head = Float32Head(linear)
    if not name:
        return head, head
    model.set_submodule(name, head)
    return model, head
