"""What holds for every codec: its rows, both array libraries, and rebuilding it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from kdcache.errors import CacheMismatchError, ConfigError
from kdcache.store.codecs.dense import Dense
from kdcache.store.codecs.lowrank import LowRank
from kdcache.store.codecs.registry import CODECS, codec_from
from kdcache.store.codecs.request import CodecRequest
from kdcache.store.codecs.sampled import Sampled
from kdcache.store.codecs.topk import TopK
from tests.store.codecs import KINDS, drawn_logits, encoded, hard_logits, make_codec, round_trip

every_kind = pytest.mark.parametrize("kind", KINDS)
several_examples = settings(max_examples=40, deadline=None)


def test_every_name_has_a_codec():
    assert set(CODECS) == set(KINDS)
    assert all(CODECS[kind].name == kind for kind in KINDS)


@every_kind
@pytest.mark.parametrize("classes", [1, 2, 10, 256, 257])
def test_rows_and_logits_have_the_stated_shape_and_type(kind, classes):
    codec = make_codec(kind, classes)
    rows = encoded(codec, drawn_logits(3, classes))
    assert (rows.shape, rows.dtype) == ((3, codec.row_width), codec.dtype)
    assert rows.nbytes == 3 * codec.row_bytes
    for decoded in (codec.decode(rows), codec.decode(torch.from_numpy(rows)).numpy()):
        assert (decoded.shape, decoded.dtype) == ((3, classes), np.float32)


@pytest.mark.parametrize(
    ("codec", "row_bytes"),
    [
        (Dense(1000), 2000),
        (make_codec("int8", 1000), 1004),
        (TopK(1000, 10), 10 * 2 + 9 * 2 + 12),
        (TopK(256, 10), 10 * 1 + 9 * 2 + 12),
        (TopK((1 << 16) + 1, 10), 10 * 4 + 9 * 2 + 12),
        (make_codec("lowrank", 1000), 3 * 2 + 2 * 2 + 8 + 2 + 4 + 2),
        (Sampled(1000, draws=50, temperature=1.0, seed=0), 100),
        (make_codec("float32", 1000), 4000),
    ],
    ids=str,
)
def test_a_row_has_the_documented_size(codec, row_bytes):
    assert codec.row_bytes == row_bytes


@every_kind
def test_the_bytes_of_a_row_depend_on_no_other_row(kind):
    codec, logits_BC = make_codec(kind, 1000), drawn_logits(9, 1000)
    ids = np.arange(50, 59)
    together = codec.encode(logits_BC, view_keys=ids, view=3)
    alone = [codec.encode(logits_BC[b : b + 1], view_keys=ids[b : b + 1], view=3) for b in range(9)]
    np.testing.assert_array_equal(together, np.concatenate(alone))
    backwards = codec.encode(logits_BC[::-1], view_keys=ids[::-1], view=3)
    np.testing.assert_array_equal(together, backwards[::-1])


@every_kind
def test_torch_and_numpy_logits_are_encoded_alike(kind):
    codec, logits_BC = make_codec(kind, 40), drawn_logits(5, 40)
    from_torch = encoded(codec, torch.from_numpy(logits_BC).requires_grad_())
    np.testing.assert_array_equal(from_torch, encoded(codec, logits_BC))


@every_kind
@pytest.mark.parametrize("classes", [1, 3, 300])
def test_torch_and_numpy_rows_are_decoded_alike(kind, classes):
    codec = make_codec(kind, classes)
    rows = encoded(codec, drawn_logits(7, classes))
    decoded = codec.decode(torch.from_numpy(rows)).numpy()
    # One float32 product or logarithm: libraries add and round in their own way.
    np.testing.assert_allclose(decoded, codec.decode(rows), rtol=1e-5, atol=1e-5)


@every_kind
def test_a_slice_of_staged_rows_is_decoded_as_the_whole(kind):
    codec = make_codec(kind, 33)
    rows = encoded(codec, drawn_logits(9, 33))
    expected = codec.decode(rows)
    for staged in (rows, torch.from_numpy(rows)):
        # Rows 1 to 4 begin at a byte that is no multiple of any type's size.
        np.testing.assert_allclose(codec.decode(staged[1:5]), expected[1:5], rtol=1e-5, atol=1e-5)


@every_kind
def test_decoding_does_not_change_the_rows(kind):
    codec = make_codec(kind, 12)
    rows = encoded(codec, drawn_logits(4, 12))
    before, staged = rows.copy(), torch.from_numpy(rows)
    codec.decode(rows)
    codec.decode(staged)
    np.testing.assert_array_equal(rows, before)


@every_kind
def test_a_codec_can_be_constructed_from_its_settings_and_arrays(kind):
    codec = make_codec(kind, 30)
    rebuilt = codec_from(json.loads(json.dumps(codec.settings)), codec.arrays)
    assert (rebuilt, str(rebuilt)) == (codec, str(codec))
    logits_BC = drawn_logits(6, 30)
    np.testing.assert_array_equal(encoded(rebuilt, logits_BC), encoded(codec, logits_BC))
    rows = encoded(codec, logits_BC)
    np.testing.assert_array_equal(rebuilt.decode(rows), codec.decode(rows))


@every_kind
def test_the_text_form_of_a_codec_is_a_valid_request(kind):
    codec = make_codec(kind, 30)
    request = CodecRequest.parse(str(codec))
    assert (request.name, request.parameters) == (codec.name, codec.parameters)


def test_the_error_of_an_unknown_codec_names_it():
    with pytest.raises(CacheMismatchError, match="codec is 'vq', expected one of dense, int8"):
        codec_from({"codec": "vq", "num_classes": 10}, {})


@every_kind
def test_logits_of_another_number_of_classes_are_refused(kind):
    with pytest.raises(ValueError, match=r"logits are \(2, 9\), expected \(B, 10\)"):
        encoded(make_codec(kind, 10), drawn_logits(2, 9))


@every_kind
@several_examples
@given(logits_BC=hard_logits(65_504 / 2))
def test_decoded_logits_are_finite_for_every_representable_row(kind, logits_BC):
    codec = make_codec(kind, logits_BC.shape[1])
    assert codec.representable(logits_BC).all()
    rows = encoded(codec, logits_BC)
    for decoded in (codec.decode(rows), codec.decode(torch.from_numpy(rows)).numpy()):
        assert np.isfinite(decoded).all()


@every_kind
def test_inf_and_nan_are_not_representable(kind):
    logits_BC = np.zeros((4, 3), np.float32)
    logits_BC[0, 1], logits_BC[1, 2], logits_BC[2, 0] = np.inf, -np.inf, np.nan
    codec = make_codec(kind, 3)
    for given_logits in (logits_BC, torch.from_numpy(logits_BC)):
        assert codec.representable(given_logits).tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    ("kind", "largest"),
    # The row is (x, 0, 0): its spread is x, its centred largest logit 2 x / 3.
    [("dense", 65_504 * 1.5), ("topk", 65_504), ("lowrank", 65_504), ("int8", 3.4028234e38)],
)
def test_the_range_has_its_documented_limit(kind, largest):
    codec = make_codec(kind, 3)
    inside = np.array([[largest, 0, 0]], np.float32)
    assert codec.representable(inside).tolist() == [True]
    decoded = round_trip(codec, inside)
    assert np.isfinite(decoded).all()
    assert decoded[0, 0] - decoded[0, 1] == pytest.approx(largest, rel=2**-8)
    beyond = np.array([[0.51 * largest, -0.51 * largest, -0.51 * largest]], np.float32)
    assert codec.representable(beyond).tolist() == [False]


@pytest.mark.parametrize("kind", ["sampled", "float32"])
def test_float32_and_sampled_accept_every_finite_logit(kind):
    codec = make_codec(kind, 3)
    widest = np.array([[3.4e38, -3.4e38, 0]], np.float32)
    assert codec.representable(widest).tolist() == [True]
    assert round_trip(codec, widest).argmax() == 0


@every_kind
def test_only_sampled_rows_are_bound_to_a_temperature(kind):
    codec = make_codec(kind, 8)
    rows = encoded(codec, drawn_logits(2, 8))
    if kind != "sampled":
        assert codec.bound_to is None
        assert np.isfinite(codec.decode(rows, temperature=7.5)).all()
        return
    assert codec.bound_to == 2.0
    np.testing.assert_array_equal(codec.decode(rows, temperature=2.0), codec.decode(rows))
    with pytest.raises(ConfigError, match=r"temperature is 7.5, expected 2.0: rows of sampled\("):
        codec.decode(rows, temperature=7.5)


def test_lowrank_is_decoded_in_float32_under_autocast():
    codec = make_codec("lowrank", 300)
    rows = torch.from_numpy(encoded(codec, drawn_logits(7, 300)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = codec.decode(rows)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, codec.decode(rows), rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
@every_kind
def test_a_gpu_encodes_and_decodes_as_the_cpu_does(kind):
    codec, logits_BC = make_codec(kind, 300), drawn_logits(7, 300)
    rows = encoded(codec, torch.from_numpy(logits_BC).cuda())
    np.testing.assert_array_equal(rows, encoded(codec, logits_BC))
    decoded = codec.decode(torch.from_numpy(rows).cuda())
    assert decoded.device.type == "cuda"
    np.testing.assert_allclose(decoded.cpu(), codec.decode(rows), rtol=1e-5, atol=1e-5)


def test_the_number_of_coefficients_is_limited_by_classes_and_rows():
    with pytest.raises(ConfigError, match=r"r of lowrank is 6, expected at most 5: .* 5 rows"):
        LowRank.fit(drawn_logits(5, 30), k=3, r=6)


def test_dense_encodes_a_row_whose_float32_sum_overflows():
    given_logits = np.array([[3e38] * 10, [0, 4, -4] + [0] * 7], dtype=np.float32)
    codec = Dense(10)
    assert codec.representable(given_logits).tolist() == [True, True]
    rows = codec.encode(given_logits, view_keys=np.arange(2), view=1)
    np.testing.assert_array_equal(codec.decode(rows), [[0] * 10, given_logits[1]])
