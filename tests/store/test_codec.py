"""Codecs: the stated bound, and the same numbers from numpy and torch."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kdcache import options
from kdcache.errors import ConfigError
from kdcache.store.codec import CODECS, Codec, Dense, Float32, codec_named

several_examples = settings(max_examples=80, deadline=None)
LARGEST_FLOAT16 = 65_504

shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)


def logits(largest: float) -> st.SearchStrategy[np.ndarray]:
    """Draw (B, C) float32, with denormal numbers, ties and constant rows among them."""
    return hnp.arrays(np.float32, shapes, elements=st.floats(-largest, largest, width=32))


def on_a_grid(logits_BC: np.ndarray) -> np.ndarray:
    """Return multiples of 1/64 in 8 classes: every step of centring is exact in float32."""
    return (np.resize(logits_BC, (len(logits_BC), 8)) * 64).round() / np.float32(64)


def bound(centred_BC: np.ndarray) -> np.ndarray:
    """Return the error that `Dense` states."""
    return np.abs(centred_BC) * 2**-11 + 2**-25


def as_torch(codec: Codec, logits_BC: np.ndarray) -> np.ndarray:
    """Encode and decode with torch."""
    rows = codec.encode(torch.from_numpy(logits_BC.copy()))
    decoded = codec.decode(rows)
    assert isinstance(decoded, torch.Tensor)
    return decoded.numpy()


def test_every_codec_that_can_be_asked_for_is_there_under_its_name():
    assert set(CODECS) == set(get_args(options.Codec))
    assert all(codec_named(name).name == name for name in CODECS)


def test_an_unknown_codec_lists_the_known():
    with pytest.raises(ConfigError, match="codec is 'int7', expected one of dense, float32"):
        codec_named("int7")


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("classes", [1, 2, 10])
def test_rows_have_the_stated_width_and_type_with_numpy_and_torch(name, classes):
    codec = codec_named(name)
    logits_BC = np.zeros((3, classes), np.float32)
    for encoded in (codec.encode(logits_BC), codec.encode(torch.from_numpy(logits_BC)).numpy()):
        assert encoded.shape == (3, codec.width(classes))
        assert encoded.dtype == codec.dtype
    for decoded in (codec.decode(encoded), codec.decode(torch.from_numpy(encoded)).numpy()):
        assert (decoded.shape, decoded.dtype) == ((3, classes), np.float32)


@several_examples
@given(logits_BC=logits(LARGEST_FLOAT16 / 2))
def test_dense_is_within_its_stated_error_of_the_centred_logits(logits_BC):
    codec = Dense()
    exact_BC = logits_BC.astype(np.float64)
    exact_BC -= exact_BC.mean(axis=1, keepdims=True)
    # Centring itself rounds in float32: the mean of C numbers, and one difference.
    slack = (logits_BC.shape[1] + 2) * 2.0**-24 * np.abs(logits_BC).max(axis=1, keepdims=True)
    for decoded_BC in (codec.decode(codec.encode(logits_BC)), as_torch(codec, logits_BC)):
        assert (np.abs(decoded_BC - exact_BC) <= bound(exact_BC) + slack * 1.01).all()


@several_examples
@given(logits_BC=logits(1000), scale=st.integers(0, 30))
def test_dense_is_within_its_stated_error_to_the_bit_where_centring_is_exact(logits_BC, scale):
    logits_BC = on_a_grid(logits_BC) * np.float32(2.0**-scale)
    centred_BC = logits_BC - logits_BC.mean(axis=1, keepdims=True, dtype=np.float64)
    for decoded_BC in (Dense().decode(Dense().encode(logits_BC)), as_torch(Dense(), logits_BC)):
        assert (np.abs(decoded_BC - centred_BC) <= bound(centred_BC)).all()


@several_examples
@given(logits_BC=logits(1000), shift=st.integers(-4000, 4000))
def test_a_constant_in_a_row_changes_nothing(logits_BC, shift):
    logits_BC = on_a_grid(logits_BC)
    shifted_BC = logits_BC + np.float32(shift / 64)
    for codec_input in (lambda array: array, torch.from_numpy):
        plain = np.asarray(Dense().encode(codec_input(logits_BC)))
        shifted = np.asarray(Dense().encode(codec_input(shifted_BC)))
        np.testing.assert_array_equal(shifted, plain)


@several_examples
@given(logits_BC=logits(1000))
def test_numpy_and_torch_encode_the_same_bytes_where_the_mean_is_exact(logits_BC):
    logits_BC = on_a_grid(logits_BC)
    encoded = Dense().encode(torch.from_numpy(logits_BC)).numpy()
    np.testing.assert_array_equal(encoded, Dense().encode(logits_BC))


@several_examples
@given(logits_BC=logits(LARGEST_FLOAT16 / 2))
def test_numpy_and_torch_decode_the_same_numbers(logits_BC):
    rows = Dense().encode(logits_BC)
    decoded = Dense().decode(torch.from_numpy(rows)).numpy()
    np.testing.assert_array_equal(decoded, Dense().decode(rows))
    np.testing.assert_array_equal(decoded, rows.astype(np.float32))


@several_examples
@given(
    logits_BC=hnp.arrays(np.float32, shapes, elements=st.floats(width=32, allow_nan=False)),
)
def test_float32_is_exact_to_the_bit(logits_BC):
    codec = Float32()
    for decoded_BC in (codec.decode(codec.encode(logits_BC)), as_torch(codec, logits_BC)):
        np.testing.assert_array_equal(decoded_BC.view(np.int32), logits_BC.view(np.int32))


def test_dense_keeps_the_order_of_logits_far_from_zero():
    logits_BC = np.array([[60_000.0, 60_001.0, 60_002.0, 60_003.0]], np.float32)
    assert Dense().decode(Dense().encode(logits_BC)).tolist() == [[-1.5, -0.5, 0.5, 1.5]]


def test_a_value_beyond_float16_is_infinite_and_not_clipped():
    logits_BC = torch.tensor([[-70_000.0, 70_000.0]])
    assert Dense().encode(logits_BC).tolist() == [[-torch.inf, torch.inf]]
