"""Top-1 and top-5, against a count by hand over pixels that were read another way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kdcache.compute.normalize import Normalise
from kdcache.data.beton import Beton, open_beton
from kdcache.data.pack import pack
from kdcache.data.views import Policy, Views
from kdcache.errors import CacheMismatchError
from kdcache.options import PackOptions
from kdcache.reader.batches import view_pixels
from kdcache.training.evaluator import Evaluator
from tests.conftest import write_images

NUM_SAMPLES = 300
"""More than one batch of the evaluator."""

VIEWS = Views(Policy.parse("pad-crop(2)"), 5, 8)


class Linear(nn.Module):
    """A linear map behind a norm and a dropout, which only training mode may move."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(3 * 8 * 8, num_classes)
        with torch.no_grad():
            self.head.weight.normal_(generator=torch.Generator().manual_seed(0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.norm(images)).flatten(1))


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory) -> Beton:
    folder = tmp_path_factory.mktemp("eight-classes")
    write_images(folder / "images", count=NUM_SAMPLES, classes=8, sides=(8, 8))
    pack(PackOptions(str(folder / "images"), workspace=folder, val_fraction=0, num_workers=1))
    return open_beton(folder / "train.beton")


@pytest.fixture(scope="module")
def evaluator(beton: Beton) -> Evaluator:
    return make_evaluator(beton, classes=8)


def make_evaluator(beton: Beton, *, classes: int) -> Evaluator:
    return Evaluator(
        beton.path,
        VIEWS,
        classes=classes,
        normalise=Normalise(beton.manifest.mean, beton.manifest.std),
        device=torch.device("cpu"),
        precision="fp32",
        num_workers=1,
    )


def test_accuracy_is_the_share_of_labels_among_the_largest_logits(beton, evaluator):
    model = Linear(8)
    found = evaluator(model)

    data = beton.manifest
    seen = view_pixels(beton, VIEWS.policy, 0, 0, beton.sample_ids, image_size=8, num_workers=1)
    images = (seen / 255 - np.array(data.mean)) / np.array(data.std)
    flat = torch.from_numpy(images.transpose(0, 3, 1, 2).reshape(NUM_SAMPLES, -1))
    # A fresh norm in evaluation mode divides by sqrt(1 + eps).
    logits = model.double().head(flat / (1 + 1e-5) ** 0.5).detach().numpy()
    places = np.argsort(-logits, axis=1)
    hits = places == beton.labels[:, None]
    assert found.top1 == pytest.approx(100 * hits[:, :1].any(axis=1).mean(), abs=1e-9)
    assert found.top5 == pytest.approx(100 * hits[:, :5].any(axis=1).mean(), abs=1e-9)
    assert found.top1 < found.top5 < 100


@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
def test_evaluation_leaves_the_model_as_it_was(evaluator, mode):
    model = Linear(8).train(mode)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = evaluator(model), evaluator(model)
    assert first == second
    assert model.training is mode
    assert model.norm.training is mode
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_evaluation_keeps_no_gradients(evaluator):
    model = Linear(8)
    evaluator(model)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_images_of_other_classes_are_refused(beton):
    with pytest.raises(CacheMismatchError, match="8 classes, expected 10"):
        make_evaluator(beton, classes=10)


def test_a_missing_evaluation_split_is_named(tmp_path: Path, beton):
    with pytest.raises(FileNotFoundError, match=r"nothing\.beton"):
        Evaluator(
            tmp_path / "nothing.beton",
            VIEWS,
            classes=8,
            normalise=Normalise(beton.manifest.mean, beton.manifest.std),
            device=torch.device("cpu"),
            precision="fp32",
            num_workers=1,
        )
