from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms import RandomResizedCrop

from kdcache.data.policy import Policy
from kdcache.data.views import view_parameters
from kdcache.errors import ConfigError
from tests.conftest import ROOT
from tests.data.policies import policies

MIN_PROBABILITY = 1e-3
"""Smallest p-value accepted. Seeds are fixed, so a test passes always or never."""

POLICIES = ["pad-crop(4, flip)", "pad-crop(1, flip=False)", "rrc", "rrc(scale=(0.25, 1))", "clean"]


SEEDS = st.integers(0, 2**64 - 1)
VIEWS = st.integers(0, 1000)
SIDES = st.integers(1, 400)


# --- a view is a pure function ---


@pytest.mark.parametrize("policy", POLICIES)
@given(seed=SEEDS, view=VIEWS, data=st.data())
@settings(deadline=None, max_examples=20)
def test_shuffled_ids_give_shuffled_rows(policy, seed, view, data):
    ids = np.array(data.draw(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=20)))
    sizes = np.array([data.draw(st.tuples(SIDES, SIDES)) for _ in ids])
    order = np.array(data.draw(st.permutations(range(len(ids)))))
    boxes = view_parameters(policy, seed, view, ids, sizes)
    assert (view_parameters(policy, seed, view, ids[order], sizes[order]) == boxes[order]).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_one_id_alone_gives_its_row_of_the_batch(policy):
    ids = np.arange(50)
    batch = view_parameters(policy, 3, 2, ids, (90, 120))
    single = [view_parameters(policy, 3, 2, [sample_id], (90, 120))[0] for sample_id in ids]
    assert np.array_equal(single, batch)


@pytest.mark.parametrize(("policy", "chance"), [("pad-crop(4, flip)", 1 / 162), ("rrc", 1e-4)])
@pytest.mark.parametrize(
    ("seed", "view", "shift"),
    [(1, 1, 0), (0, 2, 0), (2**63, 1, 0), (0, 1, 1), (1, 0, 0)],
    ids=["seed", "view", "high bit of the seed", "id", "clean"],
)
def test_another_seed_view_or_id_is_another_draw(policy, chance, seed, view, shift):
    ids = np.arange(2000)
    first = view_parameters(policy, 0, 1, ids, (100, 100))
    second = view_parameters(policy, seed, view, ids + shift, (100, 100))
    equal = int((first == second).all(axis=1).sum())
    assert stats.binom.sf(equal - 1, len(ids), chance) > MIN_PROBABILITY


def test_offsets_of_two_views_are_independent():
    ids = np.arange(20_000)
    first, second = (view_parameters("pad-crop(1, flip)", 0, view, ids, (8, 8)) for view in (1, 2))
    for column, other in [(0, 0), (0, 1), (1, 1), (4, 4), (4, 0)]:
        table = np.zeros((3, 3))
        np.add.at(table, (first[:, column] + 1, second[:, other] + 1), 1)
        table = table[table.any(axis=1)][:, table.any(axis=0)]
        assert stats.chi2_contingency(table).pvalue > MIN_PROBABILITY


def test_one_size_for_all_is_that_size_for_each():
    ids = np.arange(30)
    each = view_parameters("rrc", 0, 1, ids, np.tile([70, 130], (30, 1)))
    assert np.array_equal(view_parameters("rrc", 0, 1, ids, (70, 130)), each)


def test_a_policy_and_its_text_give_the_same_boxes():
    policy = Policy("pad-crop", padding=3, flip=True)
    boxes = view_parameters(policy, 0, 1, np.arange(30), (32, 32))
    assert np.array_equal(boxes, view_parameters(str(policy), 0, 1, np.arange(30), (32, 32)))
    assert (boxes.dtype, boxes.shape) == (np.int32, (30, 5))


def test_no_ids_give_no_boxes():
    assert view_parameters("rrc", 0, 1, [], (32, 32)).shape == (0, 5)


@pytest.mark.parametrize("path", sorted((ROOT / "tests" / "golden").glob("view_parameters.json")))
def test_view_parameters_never_change(path):
    for case in json.loads(path.read_text()):
        boxes = case.pop("boxes")
        case["view_keys"] = case.pop("sample_ids")  # the first betons drew views from these
        assert view_parameters(**case).tolist() == boxes, case


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, r"view seed is -1, expected a number in \[0, 2\^64\)"),
        ({"seed": 2**64}, "view seed is 18446744073709551616"),
        ({"view": -1}, "view is -1"),
        ({"view": 2**64}, "view is 18446744073709551616"),
        ({"view_keys": [3, -7]}, "view key is -7"),
        ({"view_keys": [0.5]}, "float64"),
        ({"view_keys": [True, False]}, "bool"),
    ],
)
def test_numbers_outside_their_range_are_refused(arguments, message):
    usual = {"policy": "rrc", "seed": 0, "view": 1, "view_keys": [0], "sizes": (32, 32)}
    with pytest.raises(ConfigError, match=message):
        view_parameters(**(usual | arguments))


# --- pad-crop ---


def test_pad_crop_offsets_and_flips_are_uniform():
    boxes = view_parameters("pad-crop(4, flip)", 0, 1, np.arange(50_000), (32, 32))
    counts = np.zeros((9, 9, 2))
    np.add.at(counts, (boxes[:, 0] + 4, boxes[:, 1] + 4, boxes[:, 4]), 1)
    assert stats.chisquare(counts.ravel()).pvalue > MIN_PROBABILITY


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_pad_crop_reaches_the_padding_on_both_sides_and_keeps_the_size(padding):
    boxes = view_parameters(f"pad-crop({padding}, flip=False)", 5, 3, np.arange(2000), (30, 41))
    assert boxes[:, :2].min(axis=0).tolist() == [-padding, -padding]
    assert boxes[:, :2].max(axis=0).tolist() == [padding, padding]
    assert (boxes[:, 2:4] == [30, 41]).all()
    assert not boxes[:, 4].any()


# --- rrc ---


def torchvisions_boxes(size, scale, ratio, count):
    """Draw boxes with torchvision's own function."""
    image = torch.empty(1, *size)
    torch.manual_seed(0)
    boxes = [RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(count)]
    return np.array(boxes)


@pytest.mark.parametrize(
    ("size", "scale", "ratio"),
    [
        ((224, 224), (0.08, 1.0), (3 / 4, 4 / 3)),
        ((375, 500), (0.08, 1.0), (3 / 4, 4 / 3)),
        ((90, 40), (0.25, 1.0), (3 / 4, 4 / 3)),
        ((100, 100), (0.08, 0.3), (0.5, 1.0)),
    ],
    ids=str,
)
def test_rrc_equals_torchvisions_random_resized_crop_in_distribution(size, scale, ratio):
    count = 8000
    expected = torchvisions_boxes(size, scale, ratio, count)
    policy = Policy("rrc", scale=scale, ratio=ratio, flip=True)
    boxes = view_parameters(policy, 0, 1, np.arange(count), size)

    def measures(found):
        top, left, height, width = found[:, :4].T
        return {
            "area share": height * width / math.prod(size),
            "ratio": width / height,
            "height": height,
            "width": width,
            "top": top,
            "left": left,
            # Where the box can move, how far along its way it lies.
            "relative top": (top / (size[0] - height + 1))[height < size[0]],
            "relative left": (left / (size[1] - width + 1))[width < size[1]],
        }

    for name, values in measures(boxes).items():
        test = stats.ks_2samp(values, measures(expected)[name])
        assert test.pvalue > MIN_PROBABILITY, name
    assert stats.binomtest(int(boxes[:, 4].sum()), count).pvalue > MIN_PROBABILITY


def test_rrc_reaches_every_place_where_a_box_fits():
    boxes = view_parameters("rrc(scale=(0.2, 0.6))", 0, 1, np.arange(20_000), (6, 6))
    for start, length in (0, 2), (1, 3):
        for side in np.unique(boxes[:, length]):
            places = np.bincount(boxes[boxes[:, length] == side, start], minlength=7 - side)
            assert len(places) == 7 - side
            assert stats.chisquare(places).pvalue > MIN_PROBABILITY


def test_rrc_draws_share_ratio_place_and_flip_independently():
    boxes = view_parameters("rrc(scale=(0.1, 0.3))", 0, 1, np.arange(10_000), (300, 300))
    top, left, height, width, flip = boxes.T.astype(float)
    draws = [
        height * width,
        width / height,
        top / (301 - height),
        left / (301 - width),
        flip,
    ]
    for one in range(len(draws)):
        for other in range(one):
            assert stats.spearmanr(draws[one], draws[other]).pvalue > MIN_PROBABILITY


@pytest.mark.parametrize(
    ("size", "ratio"),
    [
        ((1000, 10), (3 / 4, 4 / 3)),
        ((10, 1000), (3 / 4, 4 / 3)),
        ((999, 7), (3 / 4, 4 / 3)),
        ((8, 1001), (3 / 4, 4 / 3)),
        ((1, 300), (3 / 4, 4 / 3)),
        ((300, 1), (3 / 4, 4 / 3)),
        ((50, 50), (0.2, 0.22)),
        ((50, 50), (5.0, 6.0)),
        ((50, 80), (1 / 3, 3.0)),
    ],
    ids=str,
)
def test_a_shape_that_no_box_fits_gets_torchvisions_centre_box(size, ratio):
    # The whole area: no draw of another shape than the image's fits, here or there.
    expected = torchvisions_boxes(size, (1.0, 1.0), ratio, 20)
    policy = Policy("rrc", scale=(1.0, 1.0), ratio=ratio)
    assert np.array_equal(view_parameters(policy, 0, 1, np.arange(20), size)[:, :4], expected)
    assert len(np.unique(expected, axis=0)) == 1


@given(policies(), SEEDS, VIEWS, SIDES, SIDES)
@settings(deadline=None, max_examples=200)
def test_a_box_is_never_empty_and_only_padding_lies_outside(policy, seed, view, height, width):
    boxes = view_parameters(policy, seed, view, np.arange(20), (height, width))
    top, left, box_height, box_width, _ = boxes.T
    padding = policy.padding if view else 0
    assert (box_height >= 1).all()
    assert (box_width >= 1).all()
    assert (top >= -padding).all()
    assert (left >= -padding).all()
    assert (top + box_height <= height + padding).all()
    assert (left + box_width <= width + padding).all()


# --- the clean view ---


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((8, 8), (0, 0, 8, 8)),
        ((64, 64), (0, 0, 64, 64)),
        ((64, 300), (0, 0, 64, 300)),
        ((300, 20), (0, 0, 300, 20)),
        ((65, 65), (4, 4, 56, 56)),
        ((65, 66), (4, 5, 56, 56)),
        ((256, 256), (16, 16, 224, 224)),
        ((375, 500), (23, 86, 328, 328)),
        ((500, 375), (86, 23, 328, 328)),
    ],
    ids=str,
)
@pytest.mark.parametrize("policy", POLICIES)
def test_the_clean_view_is_whole_up_to_64_px_and_the_centre_square_above(policy, size, expected):
    boxes = view_parameters(policy, 5, 0, [0, 9, 2**40], size)
    assert boxes.tolist() == [[*expected, 0]] * 3


def test_every_view_of_the_clean_policy_is_the_clean_view():
    ids = np.arange(20)
    clean = view_parameters("rrc", 0, 0, ids, (90, 130))
    for view in (1, 2, 77):
        assert np.array_equal(view_parameters("clean", 4, view, ids, (90, 130)), clean)
