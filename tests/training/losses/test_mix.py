"""Mixup and CutMix: what is drawn, what becomes of images, labels and answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from kdcache.errors import ConfigError
from kdcache.training.losses.mix import Box, Mix, Mixer
from tests.training.losses.reference import (
    assert_gradient_is_that_of_finite_differences,
    assert_matches,
    drawn,
    exact_rows,
    kl,
    loss_of,
    parts_of,
    softmax,
)

B, H, W = 6, 12, 20
LABELS = torch.tensor([0, 4, 2, 2, 1, 3])
PARTNERS = torch.tensor([3, 0, 2, 5, 1, 4])
MIX = Mix(0.3, PARTNERS, None)


@pytest.fixture
def images() -> torch.Tensor:
    found = torch.randn(B, 3, H, W, generator=torch.Generator().manual_seed(0))
    return found.contiguous(memory_format=torch.channels_last)


def test_mixup_is_the_weighted_mean_of_two_images(images):
    mixed = MIX.images(images).numpy()
    for i, partner in enumerate(PARTNERS.tolist()):
        expected = 0.3 * images[i].numpy() + 0.7 * images[partner].numpy()
        np.testing.assert_allclose(mixed[i], expected, rtol=1e-5, atol=1e-6)


def test_cutmix_copies_the_box_from_the_partner(images):
    before = images.clone()
    mixed = Mix(0.5, PARTNERS, Box(2, 7, 3, 20)).images(images)
    inside = torch.zeros(H, W, dtype=torch.bool)
    inside[2:7, 3:20] = True
    for i, partner in enumerate(PARTNERS.tolist()):
        assert torch.equal(mixed[i][:, inside], images[partner][:, inside])
        assert torch.equal(mixed[i][:, ~inside], images[i][:, ~inside])
    assert torch.equal(images, before), "the batch's own buffer stays as it was"


@pytest.mark.parametrize("box", [None, Box(2, 7, 3, 20)])
def test_mixed_images_keep_their_memory_format(images, box):
    mixed = Mix(0.5, PARTNERS, box).images(images)
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    assert (mixed.dtype, mixed.shape) == (images.dtype, images.shape)


@pytest.mark.parametrize("options", [{}, {"alpha": 1.0}, {"label_smoothing": 0.1}], ids=str)
def test_labels_and_teacher_probabilities_are_mixed_with_the_weight_of_the_images(options):
    student, teacher = drawn(B, 5, seed=0), drawn(B, 5, seed=1)
    alpha, smoothing = options.get("alpha", 0.9), options.get("label_smoothing", 0.0)
    hot = (1 - smoothing) * np.eye(5)[LABELS.numpy()] + smoothing / 5
    hot = 0.3 * hot + 0.7 * hot[PARTNERS.numpy()]
    ce = -(hot * np.log(softmax(student.numpy()))).sum(axis=1)
    answers = softmax(teacher.numpy() / 4)
    answers = 0.3 * answers + 0.7 * answers[PARTNERS.numpy()]
    kd = 16 * kl(answers, softmax(student.numpy() / 4))
    parts = parts_of(student, teacher, LABELS, mix=MIX, **options)
    assert_matches(parts.cross_entropy, ce.mean())
    assert_matches(parts.distillation, kd.mean())
    assert_matches(parts.per_sample, (1 - alpha) * ce + alpha * kd)


def test_dist_uses_the_mixed_teacher_probabilities():
    student, teacher = drawn(B, 5, seed=0), drawn(B, 5, seed=1)
    answers = softmax(teacher.numpy() / 4)
    answers = 0.3 * answers + 0.7 * answers[PARTNERS.numpy()]
    expected = parts_of(
        student, torch.from_numpy(4 * np.log(answers)), LABELS, loss="dist", alpha=0.5
    )
    found = parts_of(student, teacher, LABELS, mix=MIX, loss="dist")
    torch.testing.assert_close(found.distillation, expected.distillation, rtol=1e-9, atol=0)


def test_standardised_logits_are_mixed_after_the_softmax():
    student, teacher = drawn(B, 5, seed=0), drawn(B, 5, seed=1)

    def soft(logits: torch.Tensor) -> np.ndarray:
        z = logits.numpy()
        z = (z - z.mean(axis=1, keepdims=True)) / z.std(axis=1, keepdims=True)
        return softmax(z / 2)

    answers = 0.3 * soft(teacher) + 0.7 * soft(teacher)[PARTNERS.numpy()]
    parts = parts_of(student, teacher, LABELS, mix=MIX, standardise=True)
    assert_matches(parts.distillation, 4 * kl(answers, soft(student)).mean())


def test_labels_are_mixed_without_a_teacher():
    student = drawn(B, 5, seed=0)
    parts = loss_of(mixup=1.0)(student, None, LABELS, progress=0.0, mix=MIX)
    hot = functional.one_hot(LABELS, 5).double()
    expected = functional.cross_entropy(student, 0.3 * hot + 0.7 * hot[PARTNERS])
    torch.testing.assert_close(parts.total, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_weights_0_and_1_give_one_of_the_two(share):
    student, teacher = drawn(B, 5, seed=0), drawn(B, 5, seed=1)
    found = parts_of(student, teacher, LABELS, mix=Mix(share, PARTNERS, None))
    whose = torch.arange(B) if share else PARTNERS
    expected = parts_of(student, teacher[whose], LABELS[whose])
    torch.testing.assert_close(found.total, expected.total, rtol=1e-12, atol=0)


def test_zero_probabilities_are_mixed_without_nan():
    """A probability of e^-1000 is 0 in float32, and 0 log 0 is no number."""
    teacher = torch.tensor([[1000.0, 0.0], [2000.0, 0.0]])
    mix = Mix(0.5, torch.tensor([1, 0]), None)
    student = torch.zeros(2, 2, requires_grad=True)
    loss = loss_of(temperature=1.0, mixup=1.0)
    parts = loss(student, exact_rows(teacher), torch.tensor([0, 0]), progress=0.0, mix=mix)
    parts.total.backward()
    assert parts.total.isfinite()
    assert student.grad.isfinite().all()


def test_the_gradient_matches_finite_differences():
    teacher = drawn(B, 5, seed=1)

    def total(logits: torch.Tensor) -> torch.Tensor:
        return parts_of(logits, teacher, LABELS, mix=MIX, label_smoothing=0.1).total

    assert_gradient_is_that_of_finite_differences(drawn(B, 5, seed=0), total)


def drawn_mix(mixer: Mixer, *, epoch: int = 0, batch: int = 0, rows: int = B) -> Mix:
    return mixer.draw(torch.empty(rows, 3, H, W), epoch=epoch, batch=batch)


def same(first: Mix, second: Mix) -> bool:
    return (first.share, first.box) == (second.share, second.box) and torch.equal(
        first.partners, second.partners
    )


def test_a_mixture_depends_on_seed_epoch_and_batch_only():
    mixer = Mixer(0.4, 1.0, seed=3)
    expected = drawn_mix(mixer, epoch=2, batch=5)
    for epoch in range(3):  # whatever was drawn before
        drawn_mix(mixer, epoch=epoch)
    assert same(drawn_mix(mixer, epoch=2, batch=5), expected)
    assert not same(drawn_mix(mixer, epoch=2, batch=6), expected)
    assert not same(drawn_mix(mixer, epoch=5, batch=2), expected)
    assert not same(drawn_mix(Mixer(0.4, 1.0, seed=4), epoch=2, batch=5), expected)


@settings(max_examples=60, deadline=None)
@given(
    mixup=st.none() | st.floats(0.05, 5),
    cutmix=st.none() | st.floats(0.05, 5),
    batch=st.integers(0, 1000),
    rows=st.integers(1, 9),
)
def test_a_mixture_is_a_weight_and_a_permutation(mixup, cutmix, batch, rows):
    if mixup is None and cutmix is None:
        return
    found = drawn_mix(Mixer(mixup, cutmix, seed=0), batch=batch, rows=rows)
    assert sorted(found.partners.tolist()) == list(range(rows))
    assert 0 <= found.share <= 1
    assert (found.box is None) <= (mixup is not None)
    assert (found.box is not None) <= (cutmix is not None)
    if found.box is not None:
        top, bottom, left, right = found.box
        assert 0 <= top <= bottom <= H
        assert 0 <= left <= right <= W
        pasted = Mix(0.0, found.partners, found.box).images(
            torch.arange(rows, dtype=torch.float32)[:, None, None, None].expand(rows, 3, H, W)
        )
        # The share is the exact area of what stays, and no other pixel is touched.
        area = (bottom - top) * (right - left)
        assert found.share == 1 - area / (H * W)
        for i, partner in enumerate(found.partners.tolist()):
            if partner != i:
                assert (pasted[i, 0] == partner).sum() == area


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_weights_are_drawn_from_the_beta_distribution(kind):
    """Mixup's own; CutMix's of a square as large as asked for, before it is clipped."""
    mixer = Mixer(2.0, None, 0) if kind == "mixup" else Mixer(None, 2.0, 0)
    shares = np.array([drawn_mix(mixer, batch=batch).share for batch in range(600)])
    if kind == "mixup":
        # Beta(2, 2): mean 1/2, variance 1/20; five standard errors of 600 draws.
        assert abs(shares.mean() - 0.5) < 5 * np.sqrt(1 / 20 / 600)
        assert abs(shares.var() - 1 / 20) < 0.01
    else:
        assert 0.55 < shares.mean() < 0.8, "clipping leaves more of the image itself"


def test_an_unclipped_box_has_the_drawn_area_and_the_images_aspect_ratio():
    whole = 0
    for batch in range(300):
        image = torch.empty(2, 3, 1000, 500)
        top, bottom, left, right = Mixer(None, 1.0, 0).draw(image, epoch=0, batch=batch).box
        asked = Mixer(1.0, None, 0).draw(image, epoch=0, batch=batch).share
        if top > 0 and left > 0 and bottom < 1000 and right < 500:
            high, wide = bottom - top, right - left
            # Sides are cut to whole pixels.
            assert 0 <= 1000 * np.sqrt(1 - asked) - high < 1
            assert 0 <= 500 * np.sqrt(1 - asked) - wide < 1
            whole += 1
    assert whole > 20


def test_the_draws_of_a_batch_are_the_same_on_every_machine():
    mixer = Mixer(0.4, 1.0, seed=3)
    cut, mean = (drawn_mix(mixer, epoch=2, batch=batch) for batch in (4, 5))
    assert (cut.share, cut.box) == (0.9625, Box(2, 5, 0, 3))
    assert cut.partners.tolist() == [2, 0, 1, 4, 3, 5]
    assert (mean.share, mean.box) == (0.892767, None)
    assert mean.partners.tolist() == [0, 3, 4, 2, 5, 1]


def test_boxes_can_cover_every_pixel():
    mixer = Mixer(None, 1.0, 0)
    touched = np.zeros((H, W), dtype=int)
    for batch in range(400):
        top, bottom, left, right = drawn_mix(mixer, batch=batch).box
        touched[top:bottom, left:right] += 1
    assert touched.min() > 20
    # Around an even centre: corners are reached less, and all four alike within 5 deviations.
    corners = [touched[0, 0], touched[0, -1], touched[-1, 0], touched[-1, -1]]
    assert max(corners) - min(corners) < 5 * np.sqrt(max(corners)) + 20


def test_with_mixup_and_cutmix_each_is_used_for_about_half_of_the_batches():
    mixer = Mixer(1.0, 1.0, 0)
    boxes = sum(drawn_mix(mixer, batch=batch).box is not None for batch in range(400))
    assert 150 < boxes < 250  # five standard deviations


def test_a_mixer_needs_mixup_or_cutmix():
    with pytest.raises(ConfigError, match="neither mixup nor cutmix"):
        Mixer(None, None, 0)
