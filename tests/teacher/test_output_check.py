"""A teacher's answers on labelled images: what is refused, and what is warned about."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdcache.channels import IMAGENET_MEAN, IMAGENET_STD, NormalisationWords
from kdcache.data.beton import Beton, open_beton
from kdcache.data.pack import pack
from kdcache.data.views import default_views
from kdcache.errors import TeacherError
from kdcache.options import PackOptions
from kdcache.reader.batches import view_pixels
from kdcache.teacher.ensemble import open_ensemble
from kdcache.teacher.member_settings import TeacherOptions
from kdcache.teacher.output_check import _binomial_tail, check_outputs
from kdcache.workspace import Workspace
from tests.conftest import write_images

CLASSES = 4
NUM_IMAGES = 120
CPU = torch.device("cpu")

LOGITS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
"""Name -> what a `Scripted` teacher returns for (B,) labels and (B, 3, S, S) images."""

SCRIPT = "good"


class Scripted(nn.Module):
    """Knows the label of every image of `packed`, and answers as the test says."""

    def __init__(self, beton: Beton) -> None:
        super().__init__()
        seen = view_pixels(beton, "clean", 0, 0, beton.sample_ids).astype(np.int64)
        self.labels = dict(zip(map(_key, seen), beton.labels.tolist(), strict=True))
        self.mean, self.std = 0.0, 1.0
        """Normalisation that it was trained with: with another one it knows nothing."""

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, S, S) to (B, C)."""
        shape = (1, 3, 1, 1)
        mean, std = (torch.as_tensor(x).expand(3).reshape(shape) for x in (self.mean, self.std))
        pixels = 255 * (images * std + mean)
        keys = [_key(image) for image in pixels.permute(0, 2, 3, 1).numpy()]
        labels = torch.tensor([self.labels.get(key, 0) for key in keys])
        return LOGITS[SCRIPT](labels, images)


def _key(image: np.ndarray) -> bytes:
    return np.rint(image).astype(np.int64).tobytes()


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Beton:
    """120 images in 4 classes, in the order of the classes in the file."""
    folder = tmp_path_factory.mktemp("scripted")
    write_images(folder / "images", count=NUM_IMAGES, classes=CLASSES, sides=(16, 16))
    pack(PackOptions(str(folder / "images"), workspace=folder / "w", val_fraction=0))
    return open_beton(folder / "w" / "train.beton")


MODEL: dict[str, Scripted] = {}


def scripted() -> Scripted:
    """Return the teacher of the running test, for `module:callable`."""
    return MODEL["one"]


@pytest.fixture(autouse=True)
def _model(packed: Beton) -> Iterator[None]:
    MODEL["one"] = Scripted(packed)
    yield
    MODEL.clear()


def check(
    packed: Beton,
    script: Callable[[Tensor, Tensor], Tensor],
    *,
    words: tuple[str, str] | None = ("none", "none"),
    output: str = "logits",
    members: int = 1,
    num_forwards: int = NUM_IMAGES,
    reported_top1: float | None = None,
) -> None:
    """Check a teacher that answers by a script."""
    LOGITS[SCRIPT] = script
    spec = f"{__name__}:scripted"
    specs = [*["tests.teachers:projection_16"] * (members - 1), spec]
    teacher = open_ensemble(
        specs,
        given=TeacherOptions(
            normalisations=[NormalisationWords(*words)] * members if words else [],
            outputs=[*["logits"] * (members - 1), output],
        ),
        mode="probabilities",
        workspace=Workspace(Path("nowhere")),
        data=packed.manifest,
        image_size=16,
        teacher_size=None,
    )
    members = [replace(member, reported_top1=reported_top1) for member in teacher.members]
    teacher = replace(teacher, members=members)
    check_outputs(
        teacher,
        teacher.forward(num_classes=CLASSES, device=CPU, precision="fp32"),
        packed,
        default_views(packed.manifest),
        batch_size=32,
        num_forwards=num_forwards,
        val=packed,
    )


def one_hot(labels: Tensor, scale: float = 5.0) -> Tensor:
    return scale * nn.functional.one_hot(labels, CLASSES).float()


def noisy(labels: Tensor, images: Tensor, *, every: int) -> Tensor:
    """Answer another class for about one image of `every`, chosen by its pixels."""
    wrong = (images.flatten(1).sum(dim=1).mul(977).long() % every) == 0
    return torch.where(wrong, (labels + 1) % CLASSES, labels)


def warnings(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING)


@pytest.mark.parametrize(
    "script",
    [
        lambda labels, _: one_hot(labels),
        lambda labels, images: one_hot(noisy(labels, images, every=3), 2),
        lambda labels, _: 1000 * one_hot(labels),
        lambda labels, _: one_hot(labels).log_softmax(dim=1),  # log-probabilities are logits
        lambda labels, _: one_hot(labels) - 300,
        lambda labels, _: one_hot(labels, 1.5),  # as sure as label smoothing of 0.5 makes it
    ],
    ids=["perfect", "two of three", "very sure", "log-probabilities", "shifted", "smoothed"],
)
def test_a_good_teacher_gets_no_warning(packed, caplog, script):
    with caplog.at_level(logging.INFO):
        check(packed, script)
    assert "teacher scripted is right on " in caplog.text
    assert warnings(caplog) == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probabilities_are_refused_with_the_option_that_takes_them(packed, dtype):
    def script(labels: Tensor, _: Tensor) -> Tensor:
        return one_hot(labels).softmax(dim=1).to(dtype)

    with pytest.raises(TeacherError, match=r"teacher scripted returns probabilities.*") as error:
        check(packed, script)
    assert "Use --teacher-output probabilities" in error.value.in_shell()
    check(packed, script, output="probabilities")


def test_one_member_of_an_ensemble_is_judged_by_itself(packed):
    with pytest.raises(TeacherError, match="teacher scripted returns probabilities"):
        check(packed, lambda labels, _: one_hot(labels).softmax(dim=1), members=2)


@pytest.mark.parametrize(
    ("script", "found"),
    [
        (lambda labels, _: one_hot(labels), "from 0 to 5, and a row with the sum 5"),
        (lambda labels, _: one_hot(labels).sigmoid(), "from 0.5 to 0.993"),
    ],
)
def test_what_are_no_probabilities_is_refused(packed, script, found):
    with pytest.raises(TeacherError, match=f"teacher_output=probabilities: .*{found}"):
        check(packed, script, output="probabilities")


def test_a_negative_probability_is_refused(packed):
    with pytest.raises(TeacherError, match=r"a negative probability, for sample \d+ \(class 'cl"):
        check(packed, lambda labels, _: one_hot(labels) - 1, output="probabilities")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_sample_without_a_finite_answer_is_named(packed, value):
    ids = [7, 90]
    bad = view_pixels(packed, "clean", 0, 0, ids).astype(np.int64)
    keys = {_key(image) for image in bad}

    def script(labels: Tensor, images: Tensor) -> Tensor:
        seen = [_key(255 * image) for image in images.permute(0, 2, 3, 1).numpy()]
        logits = one_hot(labels)
        logits[[key in keys for key in seen], 2] = value
        return logits

    name = packed.manifest.class_names[packed.labels[7]]
    with pytest.raises(
        TeacherError, match=rf"NaN or infinity for sample 7 \(class '{name}'\) and 1"
    ):
        check(packed, script, num_forwards=100 * NUM_IMAGES)


def test_classes_in_another_order_are_named(packed, caplog):
    check(packed, lambda labels, _: one_hot((labels + 1) % CLASSES))
    text = warnings(caplog)
    assert "right on 0.0 % of 64 labelled training images, no more than guessing (2" in text
    assert "answers 'class_1' (class 1) for most images of 'class_0' (class 0)" in text
    assert "it is right on 100 %" in text


def test_a_partly_other_order_is_found_by_its_cross_entropy(packed, caplog):
    swapped = torch.tensor([0, 1, 3, 2])
    check(packed, lambda labels, _: one_hot(swapped[labels], 20))
    text = warnings(caplog)
    assert "is worse than guessing (1.39)" in text
    assert "answers 'class_3' (class 3) for most images of 'class_2' (class 2)" in text


def test_two_classes_that_changed_places_are_found_by_their_images(packed, caplog):
    swapped = torch.tensor([0, 1, 3, 2])
    check(packed, lambda labels, _: one_hot(swapped[labels], 1.5))
    text = warnings(caplog)
    assert "2 classes seem to have changed places" in text
    assert "answers 'class_3' (class 3) for most images of 'class_2' (class 2)" in text


def test_a_class_that_is_mistaken_for_another_has_not_changed_places(packed, caplog):
    mistaken = torch.tensor([0, 1, 1, 3])
    check(packed, lambda labels, _: one_hot(mistaken[labels], 2))
    assert warnings(caplog) == ""


def test_one_answer_for_all_images_is_named(packed, caplog):
    check(packed, lambda labels, _: one_hot(torch.full_like(labels, 2), 0.1))
    assert "answers 'class_2' for 100 % of the images" in warnings(caplog)


def test_a_head_that_was_never_trained_is_at_chance(packed, caplog):
    def script(labels: Tensor, images: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        weight = torch.randn(images[0].numel(), CLASSES, generator=generator) / 300
        return (images - 0.5).flatten(1) @ weight + 0 * labels[:, None]

    check(packed, script)
    assert "no more than guessing" in warnings(caplog)
    assert "its head, if it was not trained on these classes" in warnings(caplog)


@pytest.mark.parametrize(
    "script",
    [
        lambda labels, _: (one_hot(labels, 8) - 4).sigmoid(),
        lambda labels, _: one_hot(labels, 0.2),  # cosine similarities, or a high temperature
    ],
    ids=["sigmoid", "flat"],
)
def test_right_answers_without_any_certainty_are_no_logits(packed, caplog, script):
    check(packed, script)
    assert "may be sigmoids, cosine similarities" in warnings(caplog)
    assert "Look at" not in warnings(caplog)


@pytest.mark.parametrize(
    ("mean", "std", "words"),
    [
        (IMAGENET_MEAN, IMAGENET_STD, "teacher_mean imagenet "),
        (0.0, 1.0, "teacher_mean none "),
        (0.5, 0.5, "teacher_mean=0.5 teacher_std=0.5 "),
    ],
)
def test_the_normalisation_that_a_teacher_was_trained_with_is_found(
    packed, caplog, mean, std, words
):
    MODEL["one"].mean, MODEL["one"].std = mean, std
    check(packed, lambda labels, _: one_hot(labels), words=None)
    assert f"with {words}it is right on 100.0 % of these images" in warnings(caplog)
    assert "Look at its mean and std" in warnings(caplog)
    caplog.clear()
    name = words.replace("=", " ").split()[1]
    check(packed, lambda labels, _: one_hot(labels), words=(name, name))
    assert warnings(caplog) == ""


def test_the_datas_own_normalisation_is_found_too(packed, caplog):
    data = packed.manifest
    MODEL["one"].mean, MODEL["one"].std = data.mean, data.std
    check(packed, lambda labels, _: one_hot(labels), words=("imagenet", "imagenet"))
    assert "with teacher_mean data it is right on 100.0 %" in warnings(caplog)


def test_the_check_leaves_the_normalisation_as_it_was(packed):
    LOGITS[SCRIPT] = lambda labels, _: one_hot(labels)
    teacher = open_ensemble(
        [f"{__name__}:scripted"],
        given=TeacherOptions(),
        mode="logits",
        workspace=Workspace(Path("nowhere")),
        data=packed.manifest,
        image_size=16,
        teacher_size=None,
    )
    forward = teacher.forward(num_classes=CLASSES, device=CPU, precision="fp32")
    before = [buffer.clone() for buffer in forward.normalise.buffers()]
    views = default_views(packed.manifest)
    check_outputs(teacher, forward, packed, views, batch_size=32, num_forwards=10**6)
    for found, expected in zip(forward.normalise.buffers(), before, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(("reported", "warns"), [(99.0, True), (75.0, False), (None, False)])
def test_an_accuracy_that_was_reported_is_compared_before_the_pass(packed, caplog, reported, warns):
    def script(labels: Tensor, images: Tensor) -> Tensor:
        return one_hot(noisy(labels, images, every=3), 2)

    check(packed, script, reported_top1=reported)
    assert ("images of the evaluation split, but 99.00 % was reported" in warnings(caplog)) is warns
    assert bool(warnings(caplog)) is warns


@pytest.mark.parametrize(("hits", "expected"), [(0, 1.0), (1, 1 - 0.75**3), (3, 0.25**3)])
def test_the_chance_of_luck_is_that_of_the_binomial_distribution(hits, expected):
    assert _binomial_tail(hits, 3, 0.25) == pytest.approx(expected)
