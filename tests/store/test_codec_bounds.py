"""Each codec is within the error that it states."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.data.philox import philox, uniform
from kdcache.store.codecs.dense import Dense, Float32
from kdcache.store.codecs.int8 import Int8
from kdcache.store.codecs.largest import largest_in_rows
from kdcache.store.codecs.lowrank import LowRank
from kdcache.store.codecs.registry import codec_from
from kdcache.store.codecs.rows import as_int64, unpack
from kdcache.store.codecs.sampled import LOG_UNSEEN, Sampled
from kdcache.store.codecs.topk import TopK
from tests.store.codecs import (
    below_largest,
    drawn_logits,
    encoded,
    hard_logits,
    make_codec,
    round_trip,
    softmax,
)

several_examples = settings(max_examples=80, deadline=None)
HALF_RANGE = 65_504 / 2


def log_weight(logits_BC: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return logsumexp(z / T) of each row, float64."""
    scaled_BC = logits_BC.astype(np.float64) / temperature
    largest_B1 = scaled_BC.max(axis=1, keepdims=True)
    return np.log(np.exp(scaled_BC - largest_B1).sum(axis=1)) + largest_B1[:, 0]


def tail_of(logits_BC: np.ndarray, indices_BK: np.ndarray) -> np.ndarray:
    """Return the logits of the classes that were not kept, (B, C - k)."""
    return np.array([np.delete(row, kept) for row, kept in zip(logits_BC, indices_BK, strict=True)])


# The k largest


@several_examples
@given(logits_BC=hard_logits(1e30), k=st.integers(1, 12))
def test_the_k_largest_match_a_stable_sort(logits_BC, k):
    k = min(k, logits_BC.shape[1])
    order = np.argsort(-logits_BC, axis=1, kind="stable")[:, :k]
    indices, values = largest_in_rows(logits_BC, k)
    assert indices.tolist() == order.tolist()
    np.testing.assert_array_equal(values, np.take_along_axis(logits_BC, order, axis=1))


@pytest.mark.parametrize("k", [1, 10, 999, 1000])
def test_the_k_largest_of_many_classes_match_a_stable_sort(k):
    logits_BC = np.round(drawn_logits(20, 1000))  # rounded: many ties
    indices, _ = largest_in_rows(logits_BC, k)
    order = np.argsort(-logits_BC, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(indices, order)


# dense and float32


@several_examples
@given(logits_BC=hard_logits(HALF_RANGE))
def test_dense_is_within_its_bound_of_the_centred_logits(logits_BC):
    exact_BC = logits_BC.astype(np.float64)
    exact_BC -= exact_BC.mean(axis=1, keepdims=True)
    # Centring rounds in float32: the mean of C numbers, and one difference.
    slack = (logits_BC.shape[1] + 2) * 2.0**-24 * np.abs(logits_BC).max(axis=1, keepdims=True)
    error_BC = np.abs(round_trip(Dense(logits_BC.shape[1]), logits_BC) - exact_BC)
    assert (error_BC <= np.abs(exact_BC) * 2**-11 + 2**-25 + 1.01 * slack).all()


@several_examples
@given(logits_BC=hard_logits(1000), scale=st.integers(0, 30))
def test_dense_reaches_its_exact_bound_if_centring_is_exact(logits_BC, scale):
    # Multiples of 1 / 64 in 8 classes: every step of the mean is exact in float32.
    grid_BC = (np.resize(logits_BC, (len(logits_BC), 8)) * 64).round() / np.float32(64)
    grid_BC *= np.float32(2.0**-scale)
    centred_BC = grid_BC - grid_BC.mean(axis=1, keepdims=True, dtype=np.float64)
    error_BC = np.abs(round_trip(Dense(8), grid_BC) - centred_BC)
    assert (error_BC <= np.abs(centred_BC) * 2**-11 + 2**-25).all()


def test_dense_keeps_the_order_of_logits_far_from_zero():
    logits_BC = np.array([[60_000.0, 60_001.0, 60_002.0, 60_003.0]], np.float32)
    assert round_trip(Dense(4), logits_BC).tolist() == [[-1.5, -0.5, 0.5, 1.5]]


@several_examples
@given(logits_BC=hard_logits(3e38))
def test_float32_is_exact_to_the_bit(logits_BC):
    decoded = round_trip(Float32(logits_BC.shape[1]), logits_BC)
    np.testing.assert_array_equal(decoded.view(np.int32), logits_BC.view(np.int32))


# int8


@several_examples
@given(logits_BC=hard_logits(1.7e38), shrink=st.integers(0, 130))
def test_int8_is_within_half_a_step(logits_BC, shrink):
    logits_BC = logits_BC * np.float32(2.0**-shrink)
    exact_BC = below_largest(logits_BC)
    decoded_BC = -round_trip(Int8(logits_BC.shape[1]), logits_BC).astype(np.float64)
    half_step_B1 = exact_BC.max(axis=1, keepdims=True) / 510
    # The step is a float32: below 2^-126 its own spacing is 2^-149, and there are 255 of them.
    allowed_BC = half_step_B1 + exact_BC * 2**-23 + 255 * 2.0**-149
    assert (np.abs(decoded_BC - exact_BC) <= allowed_BC).all()


def test_int8_rounds_to_the_nearest_of_255_steps():
    logits_BC = np.array([[255.0, 254.4, 100.6, 0.0]], np.float32)
    assert round_trip(Int8(4), logits_BC).tolist() == [[0.0, -1.0, -154.0, -255.0]]


def test_int8_of_a_constant_row_is_constant():
    assert round_trip(Int8(3), np.full((2, 3), 7.5, np.float32)).tolist() == [[0.0] * 3] * 2


# topk


def require_kept(logits_BC: np.ndarray, decoded_BC: np.ndarray, k: int) -> None:
    """Check the k largest: distance d from the row's largest within d 2^-11 + 2^-25."""
    order = np.argsort(-logits_BC, axis=1, kind="stable")[:, :k]
    exact_BK = np.take_along_axis(below_largest(logits_BC), order, axis=1)
    found_BK = -np.take_along_axis(decoded_BC, order, axis=1).astype(np.float64)
    assert (np.abs(found_BK - exact_BK) <= exact_BK * 2**-11 + 2**-25).all()


@pytest.mark.parametrize("kind", ["topk", "lowrank"])
@several_examples
@given(logits_BC=hard_logits(HALF_RANGE))
def test_kept_logits_are_within_their_bound(kind, logits_BC):
    codec = make_codec(kind, logits_BC.shape[1])
    require_kept(logits_BC, round_trip(codec, logits_BC), codec.parameters["k"])


@pytest.mark.parametrize("classes", [1 << 8, (1 << 8) + 1, 1 << 16, (1 << 16) + 1])
@pytest.mark.parametrize("kind", ["topk", "sampled", "lowrank"])
def test_the_last_class_can_be_kept_with_every_index_type(kind, classes):
    codec = make_codec(kind, classes)
    logits_BC = np.zeros((2, classes), np.float32)
    logits_BC[0, -1] = logits_BC[1, 0] = 60.0
    assert round_trip(codec, logits_BC).argmax(axis=1).tolist() == [classes - 1, 0]


@several_examples
@given(logits_BC=hard_logits(30), k=st.integers(1, 12))
def test_topk_stores_logsumexp_mean_and_variance_of_the_tail(logits_BC, k):
    if k >= logits_BC.shape[1]:
        return
    codec = TopK(logits_BC.shape[1], k)
    parts = codec.parts(encoded(codec, logits_BC))
    tail = -tail_of(below_largest(logits_BC), parts.indices)
    # Stored in float32, from sums in float64.
    close = {"rtol": 1e-6, "atol": 1e-6}
    np.testing.assert_allclose(parts.tail_logsumexp[:, 0], log_weight(tail), **close)
    np.testing.assert_allclose(parts.tail_mean[:, 0], tail.mean(axis=1), **close)
    np.testing.assert_allclose(parts.tail_variance[:, 0], tail.var(axis=1), **close)


def test_the_tail_of_topk_has_its_exact_mass_at_temperature_1():
    logits_BC, codec = drawn_logits(50, 300), TopK(300, 5)
    indices = codec.parts(encoded(codec, logits_BC)).indices
    decoded_tail = tail_of(round_trip(codec, logits_BC), indices)
    exact_tail = tail_of(-below_largest(logits_BC), indices)
    np.testing.assert_allclose(log_weight(decoded_tail), log_weight(exact_tail), atol=1e-5)


@pytest.mark.parametrize(
    # Exact at T = 1 and as T grows, interpolated between: the most that any of 50 rows is off.
    ("temperature", "atol"),
    [(1.0, 1e-5), (1.5, 0.1), (2.0, 0.1), (4.0, 0.05), (20.0, 1e-3), (1e4, 1e-6)],
)
def test_the_tail_of_topk_has_about_its_mass_at_other_temperatures(temperature, atol):
    logits_BC, codec = drawn_logits(50, 300, scale=1.5), TopK(300, 5)
    indices = codec.parts(encoded(codec, logits_BC)).indices
    decoded_tail = tail_of(round_trip(codec, logits_BC, temperature=temperature), indices)
    exact_tail = tail_of(-below_largest(logits_BC), indices)
    difference = log_weight(decoded_tail, temperature) - log_weight(exact_tail, temperature)
    assert np.abs(difference).max() < atol


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0, 3.0])
def test_the_tail_logit_is_between_the_tails_mean_and_the_kept_logits(temperature):
    logits_BC, codec = drawn_logits(50, 40, scale=20.0), TopK(40, 3)
    parts = codec.parts(encoded(codec, logits_BC))
    filling = parts.tail_logit(temperature, 37)
    assert (filling <= parts.logits[:, -1:]).all()
    assert (filling >= parts.tail_mean).all()
    assert np.isfinite(filling).all()


def test_the_tail_of_topk_is_uniform():
    logits_BC, codec = drawn_logits(6, 20), TopK(20, 3)
    parts = codec.parts(encoded(codec, logits_BC))
    tail = tail_of(round_trip(codec, logits_BC), parts.indices)
    assert (tail == tail[:, :1]).all()


# lowrank


def test_a_full_basis_has_only_the_error_of_rounding_the_coefficients():
    directions = np.random.default_rng(1).standard_normal((5, 60))
    # No logit is kept but the largest: lowering it to the second is then all that is lost.
    logits_NC = (np.random.default_rng(2).standard_normal((400, 5)) @ directions).astype(np.float32)
    codec = LowRank.fit(logits_NC, k=1, r=20, fine=20)
    rows = encoded(codec, logits_NC[:50])
    steps_B1 = unpack(codec._fields, rows)["step"]
    error_BC = codec.decode(rows) + below_largest(logits_NC[:50])
    largest_B = np.argmax(logits_NC[:50], axis=1)
    np.put_along_axis(error_BC, largest_B[:, None], 0.0, axis=1)
    # The level of a tail may move as far as its shape; the lowered logit adds a little to both.
    allowed_BC = 2 * (steps_B1 / 2 * np.abs(codec.basis).sum(axis=0)).max(axis=1, keepdims=True)
    assert np.median(np.abs(error_BC) / allowed_BC) < 0.25
    assert (np.abs(error_BC) <= allowed_BC + 0.05 * logits_NC.std()).all()


def test_coefficients_match_a_projection_on_the_basis():
    logits_NC = drawn_logits(300, 50)
    codec = LowRank.fit(logits_NC, k=4, r=7)
    fields = unpack(codec._fields, encoded(codec, logits_NC))
    found_BR = fields["step"] * fields["coefficients"].astype(np.float64)
    lowered_NC = np.minimum(logits_NC, np.sort(logits_NC, axis=1)[:, -5][:, None]).astype(
        np.float64
    )
    lowered_NC -= lowered_NC.mean(axis=1, keepdims=True)
    basis_RC = codec.basis.astype(np.float64)
    expected, *_ = np.linalg.lstsq(basis_RC.T, (lowered_NC - codec.mean).T, rcond=None)
    # Half a step of int8, and float32 sums.
    assert (np.abs(found_BR - expected.T) <= fields["step"] * (0.5 + 1e-3)).all()
    # Whitened: each coefficient has deviation 1 over the rows that the basis was fitted to.
    np.testing.assert_allclose(expected.std(axis=1), 1, rtol=1e-5)
    assert np.abs(fields["coefficients"]).max(axis=1).min() == 127


@pytest.mark.parametrize("coarse", [1, 2, 5])
def test_coarse_coefficients_are_within_half_a_coarse_step(coarse):
    logits_NC = drawn_logits(300, 50)
    exact = LowRank.fit(logits_NC, k=4, r=2 + coarse, fine=2 + coarse)
    codec = replace(exact, fine=2)
    assert codec.row_bytes == exact.row_bytes - coarse + -(-coarse // 2) + 4
    fields, finer = (unpack(kind._fields, encoded(kind, logits_NC)) for kind in (codec, exact))
    # Read by hand: two to a byte, the first half of them low, 8 more than they are.
    low_BP, high_BP = fields["pairs"] % 16, fields["pairs"] // 16
    steps_BR = np.concatenate([low_BP, high_BP], axis=1)[:, :coarse].astype(np.float64) - 8
    found_BR = fields["coarse_step"] * steps_BR
    expected_BR = finer["step"] * finer["coefficients"].astype(np.float64)[:, 2:]
    allowed_BR = 0.5 * fields["coarse_step"] + 0.5 * finer["step"] + 1e-5
    assert (np.abs(found_BR - expected_BR) <= allowed_BR).all()
    assert (np.abs(steps_BR).max(axis=1) == 7).all()
    # What is decoded is mean, offset and these coefficients, where nothing was kept.
    fine_BR = fields["step"] * fields["coefficients"].astype(np.float64)
    shape_BC = np.concatenate([fine_BR, found_BR], axis=1) @ codec.basis + codec.mean
    tail_BC = tail_of(shape_BC + fields["offset"], as_int64(fields["indices"]))
    decoded_BC = tail_of(round_trip(codec, logits_NC), as_int64(fields["indices"]))
    np.testing.assert_allclose(decoded_BC, tail_BC, atol=1e-4)


def test_a_codec_comes_back_from_its_settings():
    codec = LowRank.fit(drawn_logits(300, 50), k=4, r=20, fine=20)
    assert codec_from(codec.settings, codec.arrays) == codec


def test_at_equal_size_coarse_coefficients_have_smaller_errors_than_fine_ones():
    logits_NC = drawn_logits(600, 200)
    wide = LowRank.fit(logits_NC, k=3, r=72)
    narrow = replace(wide.truncated(48), fine=48)
    assert wide.row_bytes == narrow.row_bytes
    errors = [
        np.abs(round_trip(codec, logits_NC) + below_largest(logits_NC)).mean()
        for codec in (wide, narrow)
    ]
    assert errors[0] < 0.95 * errors[1]


def test_the_tail_of_lowrank_has_its_exact_mass_at_temperature_2():
    logits_NC = drawn_logits(300, 200)
    codec = LowRank.fit(logits_NC, k=5, r=6)
    indices, _ = largest_in_rows(logits_NC, 5)
    decoded_tail = tail_of(round_trip(codec, logits_NC), indices)
    exact_tail = tail_of(-below_largest(logits_NC), indices)
    np.testing.assert_allclose(log_weight(decoded_tail, 2), log_weight(exact_tail, 2), atol=1e-5)
    assert np.abs(log_weight(decoded_tail, 1) - log_weight(exact_tail, 1)).max() > 1e-3


def test_more_coefficients_have_smaller_errors():
    logits_NC = drawn_logits(400, 60)
    full = LowRank.fit(logits_NC, k=3, r=32)
    errors = [
        np.abs(round_trip(full.truncated(r), logits_NC) + below_largest(logits_NC)).mean()
        for r in (1, 2, 4, 8, 32)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * errors[0]


def test_a_truncated_basis_is_the_one_fitted_with_fewer_components():
    logits_NC = drawn_logits(200, 30)
    truncated = LowRank.fit(logits_NC, k=3, r=9).truncated(4)
    fitted = LowRank.fit(logits_NC, k=3, r=4)
    assert truncated == fitted
    np.testing.assert_allclose(truncated.basis, fitted.basis, atol=1e-6)


def test_equal_rows_give_an_equal_basis():
    for num_classes in (40, 61):  # fewer and more than rows
        logits_NC = drawn_logits(60, num_classes)
        first, second = (LowRank.fit(logits_NC.copy(), k=3, r=5) for _ in range(2))
        np.testing.assert_array_equal(first.basis, second.basis)


@pytest.mark.parametrize("rows", [30, 80])
def test_a_basis_has_principal_components_as_long_as_their_standard_deviations(rows):
    logits_NC = drawn_logits(rows, 50)  # fewer and more rows than classes
    codec = LowRank.fit(logits_NC, k=4, r=6)
    lowered_NC = np.minimum(logits_NC, np.sort(logits_NC, axis=1)[:, -5][:, None])
    lowered_NC = lowered_NC.astype(np.float64)
    lowered_NC -= lowered_NC.mean(axis=1, keepdims=True)
    lowered_NC -= lowered_NC.mean(axis=0)
    _, lengths, components = np.linalg.svd(lowered_NC, full_matrices=False)
    expected_RC = lengths[:6, None] / np.sqrt(rows) * components[:6]
    signs_R1 = np.sign((codec.basis * expected_RC).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(codec.basis, signs_R1 * expected_RC, atol=1e-4)
    # Of a component and its opposite, the one whose largest entry is positive.
    assert (codec.basis.max(axis=1) == np.abs(codec.basis).max(axis=1)).all()


def test_constant_rows_have_a_zero_basis_and_are_decoded():
    constant_NC = np.full((5, 4), 3.0, np.float32)
    codec = LowRank.fit(constant_NC, k=2, r=3)
    assert not codec.basis.any()
    np.testing.assert_allclose(round_trip(codec, constant_NC), 0.0, atol=1e-6)


def test_a_basis_can_be_fitted_to_one_row():
    logits_NC = drawn_logits(1, 12)
    codec = LowRank.fit(logits_NC, k=2, r=1)
    order = np.argsort(-logits_NC[0])
    decoded = round_trip(codec, logits_NC)
    np.testing.assert_allclose(
        decoded[0, order[2:]], -below_largest(logits_NC)[0, order[2:]], atol=1e-4
    )


# sampled


@several_examples
@given(
    logits_BC=hard_logits(30),
    draws=st.integers(1, 60),
    temperature=st.sampled_from([0.5, 1.0, 4.0]),
    seed=st.integers(0, 2**63),
)
def test_every_frequency_is_within_one_draw_of_its_probability(logits_BC, draws, temperature, seed):
    codec = Sampled(logits_BC.shape[1], draws=draws, temperature=temperature, seed=seed)
    frequencies = softmax(round_trip(codec, logits_BC) / temperature)
    expected = softmax(logits_BC / temperature)
    assert (np.abs(frequencies - expected) < 1 / draws + 1e-6).all()


def test_drawn_frequencies_are_unbiased():
    codec = Sampled(30, draws=7, temperature=2.0, seed=3)
    logits_BC = np.repeat(drawn_logits(1, 30), 4000, axis=0)
    frequencies = softmax(round_trip(codec, logits_BC) / 2).mean(axis=0)
    expected = softmax(logits_BC[0:1] / 2)[0]
    # A frequency is one of two neighbouring multiples of 1 / 7: deviation at most 1 / 14, and of
    # the mean of 4000 rows 0.0011; six times that.
    np.testing.assert_allclose(frequencies, expected, atol=0.007)


def test_draws_are_a_function_of_seed_view_and_sample_id():
    logits_BC = np.repeat(drawn_logits(1, 200, scale=0.5), 3, axis=0)
    codec = Sampled(200, draws=40, temperature=1.0, seed=0)

    def rows(codec, ids, view):
        return codec.encode(logits_BC, view_keys=np.array(ids), view=view)

    reference = rows(codec, [4, 5, 6], 1)
    np.testing.assert_array_equal(reference[::-1], rows(codec, [6, 5, 4], 1))
    assert len({row.tobytes() for row in reference}) == 3
    assert not (reference == rows(codec, [4, 5, 6], 2)).all(axis=1).any()
    other = Sampled(200, draws=40, temperature=1.0, seed=1)
    assert not (reference == rows(other, [4, 5, 6], 1)).all(axis=1).any()


def test_draws_are_systematic_samples_of_the_cumulative_distribution():
    logits_BC = drawn_logits(5, 50, scale=1.0)
    codec = Sampled(50, draws=9, temperature=2.0, seed=11)
    rows = codec.encode(logits_BC, view_keys=np.arange(5), view=7)
    for sample_id, row, logits_C in zip(range(5), rows, logits_BC, strict=True):
        words = (11, 0x6472617773, sample_id, 7, 0)  # the stream is named "draws"
        offset = uniform(np.uint64(philox(*(np.uint64(word) for word in words))[0]))
        cumulative = np.cumsum(softmax(logits_C[None] / 2)[0])
        expected = np.searchsorted(cumulative, (np.arange(9) + offset) / 9, side="right")
        assert codec.classes_drawn(row).tolist() == expected.tolist()


def test_a_class_of_probability_0_is_never_drawn():
    logits_BC = np.full((200, 6), -1e30, np.float32)
    logits_BC[:, 2:4] = 0.0
    rows = encoded(Sampled(6, draws=4, temperature=1.0, seed=0), logits_BC)
    assert set(np.unique(rows)) == {2, 3}


def test_a_class_that_was_not_drawn_has_probability_0_and_a_finite_logit():
    logits_BC = np.array([[0.0, -1e4]], np.float32)
    codec = Sampled(2, draws=5, temperature=2.0, seed=0)
    assert round_trip(codec, logits_BC).tolist() == [[0.0, 2.0 * LOG_UNSEEN]]
