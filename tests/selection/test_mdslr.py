"""MDSLR parity: its quotas, halves, view and constants, against its procedure said again."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from kdcache.errors import CacheMismatchError, ConfigError
from kdcache.options import PruningOptions, SelectOptions
from kdcache.selection.mdslr import augmented_cross_entropy, mdslr_quotas
from kdcache.selection.pruning import select_per_group
from kdcache.selection.select import select
from kdcache.selection.subset import Subset
from kdcache.store.logit_store import LogitStore
from kdcache.store.reshaping import reshaping_constants

RATIOS = [30, 40, 50, 70]


def generate_index(scores: np.ndarray, labels: np.ndarray, classes: int, ratio: int) -> list[int]:
    """Select as the authors' generate_index.py does; ties by sample id."""
    num = int(len(labels) / classes * ratio / 100)
    selected: list[int] = []
    for label in range(classes):
        index = np.where(labels == label)[0]
        order = index[np.argsort(scores[index], kind="stable")]
        if num >= len(order):
            selected += order.tolist()
            continue
        middle = len(order) // 2
        selected += order[middle : middle + num // 2].tolist()
        selected += order[middle - (num - num // 2) : middle].tolist()
    return sorted(selected)


def parity(scores: np.ndarray, labels: np.ndarray, classes: int, ratio: int) -> list[int]:
    quotas = mdslr_quotas(np.bincount(labels, minlength=classes).tolist(), ratio / 100)
    options = PruningOptions(method="medium")
    return select_per_group(scores, labels, options, np.arange(classes), quotas).tolist()


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("seed", range(8))
def test_parity_keeps_the_ids_of_the_published_code(ratio, seed):
    rng = np.random.default_rng(seed)
    classes = 10
    # From classes that are kept whole to classes of three times the mean.
    shares = rng.dirichlet(np.full(classes, 1.0 if seed % 2 else 30.0))
    labels = rng.choice(classes, 997, p=shares)
    scores = rng.gamma(0.5, size=997).astype(np.float32)
    if seed > 5:
        scores = np.round(scores, 1)
    expected = generate_index(scores, labels, classes, ratio)
    assert parity(scores, labels, classes, ratio) == expected
    sizes = np.bincount(labels, minlength=classes)
    if seed == 1:  # the case that the quotas of `--balance class` would fill up from elsewhere
        assert (sizes < int(997 / classes * ratio / 100)).any()
        assert len(expected) < int(0.997 * 10 * ratio) - 5


def test_the_published_index_files_have_these_sizes_and_are_nested():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(100), 500)
    scores = rng.gamma(0.5, size=50_000).astype(np.float32)
    before: set[int] = set()
    for ratio, size in {10: 5_000, 20: 10_000, 30: 15_000, 50: 25_000, 70: 35_000}.items():
        ids = parity(scores, labels, 100, ratio)
        assert len(ids) == size
        assert (np.bincount(labels[ids]) == 5 * ratio).all()
        assert before < set(ids)
        before = set(ids)


@pytest.mark.parametrize(
    ("sizes", "keep", "number"),
    [
        ([500] * 100, 0.7, 350),
        ([1281] * 999 + [1448], 0.7, 896),
        ([100] * 10, 0.29, 29),  # though 0.29 * 100 is 28.999999999999996
        ([7, 7, 7], 0.3, 2),
    ],
)
def test_quotas_are_the_whole_part_of_the_mean_class_size(sizes, keep, number):
    assert set(mdslr_quotas(sizes, keep)) == {number}


def test_a_keep_that_leaves_no_sample_is_an_error():
    with pytest.raises(ConfigError, match=r"keep=0\.1: .* = 0 samples of each class"):
        mdslr_quotas([5, 6, 7], 0.1)


def test_the_score_is_the_cross_entropy_of_the_first_augmented_view(tiny_store):
    found = augmented_cross_entropy(tiny_store)
    logits = tiny_store.logits(np.arange(72), 1).astype(np.float64)
    expected = -log_softmax(logits, axis=1)[np.arange(72), tiny_store.labels]
    # One rounding to float32.
    np.testing.assert_allclose(found, expected, rtol=2**-23)
    assert abs(found - tiny_store.scores["cross_entropy"]).max() > 0.01


@pytest.mark.parametrize("ratio", RATIOS)
def test_the_command_selects_as_the_published_code(workspace, tiny_store, ratio):
    options = SelectOptions(workspace=workspace, parity="mdslr", keep=ratio / 100)
    result = select(options).to_json()
    found = Subset.load(result["path"])
    scores = augmented_cross_entropy(tiny_store)
    expected = generate_index(scores, tiny_store.labels, 4, ratio)
    assert found.sample_ids.tolist() == expected
    assert found.provenance["parity"] == "mdslr"
    assert result["path"].endswith(f"medium-{ratio / 100:g}-mdslr.npz")


def test_random_parity_keeps_the_same_number_of_each_class(workspace, tiny_store):
    options = SelectOptions(workspace=workspace, parity="mdslr", method="random", keep=0.5)
    ids = Subset.load(select(options).to_json()["path"]).sample_ids
    assert np.bincount(tiny_store.labels[ids]).tolist() == [9] * 4


def test_a_store_without_augmented_views_is_refused(tiny_store):
    store = LogitStore.open(tiny_store.path)
    store.num_views = 0
    with pytest.raises(CacheMismatchError, match=r"holds 0 augmented views .*--views 1"):
        augmented_cross_entropy(store)
    store = LogitStore.open(tiny_store.path)
    store.sample_ids = store.sample_ids[:30]
    with pytest.raises(CacheMismatchError, match=r"3 augmented views of 30 samples, .* all 72"):
        augmented_cross_entropy(store)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "hard"},
        {"score": "el2n"},
        {"balance": "class"},
        {"min_per_class": 2},
        {"average_with": ("r34",)},
    ],
    ids=str,
)
def test_options_that_parity_fixes_are_refused(options):
    ((name, value),) = options.items()
    shown = value[0] if isinstance(value, tuple) else value
    with pytest.raises(ConfigError, match=f"^{name}={shown}: "):
        SelectOptions(parity="mdslr", **options)


def test_the_constants_are_the_mean_deviation_of_all_rows_of_a_class(tiny_store):
    found = tiny_store.reshaping_constants()
    deviations = tiny_store.logits(np.arange(72), 0).astype(np.float64).std(axis=1, ddof=1)
    expected = [deviations[tiny_store.labels == label].mean() for label in range(4)]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=0)
    wrong = tiny_store.logits(np.arange(72), 0).std(axis=1)
    assert abs(wrong[tiny_store.labels == 0].mean() - expected[0]) > 1e-3


def test_a_class_without_samples_has_no_constant():
    found = reshaping_constants(np.array([1.0, 3.0, 5.0], np.float32), np.array([0, 0, 2]), 4)
    np.testing.assert_array_equal(found, [2.0, np.nan, 5.0, np.nan])
