from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms import RandomErasing

from kdcache.data.photometric_parameters import photometric_parameters
from kdcache.data.policy import Policy
from kdcache.data.views import view_parameters
from kdcache.errors import ConfigError
from tests.conftest import ROOT
from tests.data.policies import policies

MIN_PROBABILITY = 1e-3
"""Smallest p-value accepted. Seeds are fixed, so a test passes always or never."""

NOTHING = [256, 256, 256, 0, 0, 0, 0]
ALL = "rrc(brightness=0.4, contrast=0.4, saturation=0.4, erase=0.25)"
SEEDS = st.integers(0, 2**64 - 1)
SIZES = st.integers(1, 300)


# --- a change is a pure function, of numbers of its own ---


@given(policies(), SEEDS, st.integers(0, 1000), SIZES, st.data())
@settings(deadline=None, max_examples=30)
def test_shuffled_ids_give_shuffled_rows(policy, seed, view, image_size, data):
    ids = np.array(data.draw(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=20)))
    order = np.array(data.draw(st.permutations(range(len(ids)))))
    changes = photometric_parameters(policy, seed, view, ids, image_size)
    assert (changes.dtype, changes.shape) == (np.int32, (len(ids), 7))
    assert np.array_equal(
        photometric_parameters(policy, seed, view, ids[order], image_size), changes[order]
    )


def drawn_in_python(policy, seed, view, sample_id, size):
    """Return a change from numpy's Philox and Python's numbers."""

    def draws(stream, block):
        key = seed | int.from_bytes(stream.encode(), "big") << 64
        counter = (sample_id | view << 64 | block << 128) - 1
        return np.random.Generator(np.random.Philox(key=key, counter=counter % 2**256)).random(4)

    factors = []
    for (low, high), draw in zip(
        (policy.brightness, policy.contrast, policy.saturation), draws("factors", 0), strict=False
    ):
        first, last = round(256 * low), round(256 * high)
        factors.append(first + int(draw * (last - first + 1)))
    if draws("erase", 0)[0] < policy.erase:
        for attempt in range(1, 11):
            share, ratio, top, left = draws("erase", attempt)
            low, high = policy.erase_scale
            area = (low + share * (high - low)) * size**2
            low, high = (math.log(edge) for edge in policy.erase_ratio)
            shape = math.exp(low + ratio * (high - low))
            height, width = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
            if 0 < height < size and 0 < width < size:
                place = int(top * (size - height + 1)), int(left * (size - width + 1))
                return [*factors, *place, height, width]
    return [*factors, 0, 0, 0, 0]


@pytest.mark.parametrize("image_size", [8, 32, 224])
@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_changes_are_those_drawn_in_python(image_size, seed):
    policy = Policy.parse("pad-crop(brightness=0.4, contrast=(0.2, 3), saturation=1, erase=0.7)")
    ids = [*range(40), 2**40]
    expected = [drawn_in_python(policy, seed, 3, sample_id, image_size) for sample_id in ids]
    assert photometric_parameters(policy, seed, 3, ids, image_size).tolist() == expected


@given(policies(), SEEDS, st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_a_box_is_the_same_with_and_without_changes(policy, seed, view):
    plain = Policy(
        policy.kind,
        padding=policy.padding,
        scale=policy.scale,
        ratio=policy.ratio,
        flip=policy.flip,
    )
    ids = np.arange(20)
    boxes = view_parameters(policy, seed, view, ids, (90, 120))
    assert np.array_equal(boxes, view_parameters(plain, seed, view, ids, (90, 120)))


@pytest.mark.parametrize(
    ("part", "columns"),
    [
        ("brightness=0.4", [0]),
        ("contrast=0.4", [1]),
        ("saturation=0.4", [2]),
        ("erase=0.25", [3, 4, 5, 6]),
    ],
)
def test_a_change_does_not_depend_on_the_other_changes(part, columns):
    ids = np.arange(200)
    whole = photometric_parameters(ALL, 3, 2, ids, 64)
    alone = photometric_parameters(f"rrc({part})", 3, 2, ids, 64)
    assert np.array_equal(alone[:, columns], whole[:, columns])
    others = np.setdiff1d(range(7), columns)
    assert (alone[:, others] == np.array(NOTHING)[others]).all()


@given(policies(), SEEDS, st.integers(0, 2**40), SIZES)
@settings(deadline=None, max_examples=30)
def test_the_clean_view_has_no_change(policy, seed, sample_id, image_size):
    assert photometric_parameters(policy, seed, 0, [sample_id], image_size).tolist() == [NOTHING]


@pytest.mark.parametrize("policy", ["clean", "rrc", "pad-crop(4, flip)"])
def test_a_policy_without_changes_has_none(policy):
    assert photometric_parameters(policy, 1, 2, range(50), 32).tolist() == [NOTHING] * 50


def test_photometric_parameters_never_change():
    path = ROOT / "tests" / "golden" / "photometric_parameters.json"
    for case in json.loads(path.read_text()):
        changes = case.pop("changes")
        case["view_keys"] = case.pop("sample_ids")  # the first betons drew views from these
        assert photometric_parameters(**case).tolist() == changes, case


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "view seed is -1"),
        ({"seed": 2**64}, "view seed is 18446744073709551616"),
        ({"view": -1}, "view is -1"),
        ({"view_keys": [3, -7]}, "view key is -7"),
        ({"view_keys": [0.5]}, "float64"),
    ],
)
def test_numbers_outside_their_range_are_refused(arguments, message):
    usual = {"policy": "rrc", "seed": 0, "view": 1, "view_keys": [0], "image_size": 32}
    with pytest.raises(ConfigError, match=message):
        photometric_parameters(**(usual | arguments))


# --- distributions ---


def test_factors_are_uniform_and_independent():
    policy = "rrc(brightness=(0.75, 1.25), contrast=(0.75, 1.25), saturation=(0.75, 1.25))"
    factors = photometric_parameters(policy, 0, 1, np.arange(40_000), 32)[:, :3]
    for column in factors.T:
        counts = np.bincount(column - 192, minlength=129)
        assert len(counts) == 129
        assert stats.chisquare(counts).pvalue > MIN_PROBABILITY
    for one, other in [(0, 1), (0, 2), (1, 2)]:
        correlation = stats.spearmanr(factors[:, one], factors[:, other])
        assert correlation.pvalue > MIN_PROBABILITY


def test_factors_do_not_follow_the_box_or_another_view():
    ids = np.arange(10_000)
    first, second = (photometric_parameters(ALL, 0, view, ids, 32)[:, 0] for view in (1, 2))
    top = view_parameters("rrc", 0, 1, ids, (300, 300))[:, 0]
    for other in (second, top):
        assert stats.spearmanr(first, other).pvalue > MIN_PROBABILITY


def test_a_box_is_erased_as_often_as_asked():
    heights = photometric_parameters("rrc(erase=0.3)", 0, 1, np.arange(20_000), 224)[:, 5]
    erased = int((heights > 0).sum())
    # Of the boxes drawn with torchvision's usual numbers, all fit within ten attempts.
    assert stats.binomtest(erased, 20_000, 0.3).pvalue > MIN_PROBABILITY


@pytest.mark.parametrize(
    ("size", "scale", "ratio"),
    [
        (224, (0.02, 0.33), (0.3, 3.3)),
        (32, (0.02, 0.33), (0.3, 3.3)),
        (100, (0.2, 0.6), (0.5, 2.0)),
    ],
)
def test_an_erased_box_equals_torchvisions_in_distribution(size, scale, ratio):
    count = 8000
    torch.manual_seed(0)
    image = torch.ones(1, size, size)
    expected = np.array(
        [RandomErasing.get_params(image, scale, ratio, [0.0])[:4] for _ in range(count)]
    )
    policy = Policy("rrc", erase=1.0, erase_scale=scale, erase_ratio=ratio)
    boxes = photometric_parameters(policy, 0, 1, np.arange(count), size)[:, 3:]

    def measures(found):
        top, left, height, width = found.T
        return {
            "area share": height * width / size**2,
            "ratio": height / width,
            "height": height,
            "width": width,
            "relative top": top / (size - height + 1),
            "relative left": left / (size - width + 1),
        }

    for name, values in measures(boxes).items():
        test = stats.ks_2samp(values, measures(expected)[name])
        assert test.pvalue > MIN_PROBABILITY, name


@given(policies(), SEEDS, SIZES)
@settings(deadline=None, max_examples=100)
def test_an_erased_box_lies_inside_the_output(policy, seed, image_size):
    top, left, height, width = photometric_parameters(policy, seed, 1, range(20), image_size)[
        :, 3:
    ].T
    assert ((height > 0) == (width > 0)).all()
    assert (np.minimum(top, left) >= 0).all()
    assert (np.maximum(top + height, left + width) <= image_size).all()


def test_a_box_that_never_fits_is_not_erased():
    policy = "rrc(erase=1, erase_scale=(1, 1), erase_ratio=(1, 1))"
    assert photometric_parameters(policy, 0, 1, range(30), 32)[:, 3:].max() == 0
