"""A model that is published as torchvision's are: a builder, an enum of weights, a file each.

Not `from __future__ import annotations`: torchvision reads the builder's annotation.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights
from torchvision.models._api import Weights, WeightsEnum, register_model
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from kdcache.files import sha256_of

CLASSES = ["class_0", "class_1", "class_2", "class_3"]
"""Those of the packed test images."""

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
CROP, RESIZE = 24, 26


class TinyNet(nn.Module):
    """Takes images of any size."""

    def __init__(self, num_classes: int = 4, gain: float = 1.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2)
        self.fc = nn.Linear(8 * 9, num_classes)
        self.gain = gain

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, S, S) to (B, C)."""
        hidden = nn.functional.adaptive_avg_pool2d(self.conv(images).relu(), 3)
        return self.gain * self.fc(hidden.flatten(1))


def _weights(categories: list[str] | None, **about: Any) -> Weights:
    transforms = partial(
        ImageClassification,
        crop_size=CROP,
        resize_size=RESIZE,
        mean=MEAN,
        std=STD,
        interpolation=InterpolationMode.BICUBIC,
    )
    return Weights(
        url="not published yet", transforms=transforms, meta={"categories": categories, **about}
    )


class TinyNet_Weights(WeightsEnum):  # noqa: N801  (torchvision's form)
    """Entries whose files `publish` writes."""

    FIRST = _weights(CLASSES)
    SECOND = _weights(CLASSES, entry=2)
    SWAPPED = _weights([CLASSES[0], CLASSES[2], CLASSES[1], CLASSES[3]])
    FEATURES = _weights(None)
    IMAGENET = _weights(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])
    DEFAULT = SECOND


@register_model()
def kdcache_tiny(
    *, weights: TinyNet_Weights | None = None, progress: bool = True, **kwargs: Any
) -> TinyNet:
    """Build it; with weights it multiplies by two, as torchvision's Inception changes its input."""
    weights = TinyNet_Weights.verify(weights)
    if weights is not None:
        kwargs |= {"num_classes": len(weights.meta["categories"]), "gain": 2.0}
    model = TinyNet(**kwargs)
    if weights is not None:
        model.load_state_dict(weights.get_state_dict(progress=progress, check_hash=True))
    return model


def tiny_net(seed: int) -> TinyNet:
    """Return a model with drawn weights."""
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = TinyNet()
    torch.set_rng_state(state)
    return model


def publish(
    entry: TinyNet_Weights, content: object, folder: Path, address: str, **options: Any
) -> Path:
    """Write a file with its digest in its name, and let an entry point to it."""
    draft = folder / "draft"
    torch.save(content, draft, **options)
    path = draft.rename(folder / f"kdcache_tiny-{sha256_of(draft)[:8]}.pth")
    entry.value.url = f"{address}/{path.name}"
    return path
