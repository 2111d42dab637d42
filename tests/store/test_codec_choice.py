"""How a codec is asked for, what is measured of it, and which one `auto` takes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from kdcache.errors import ConfigError
from kdcache.rng import generator
from kdcache.store.codecs.choice import (
    MAX_ROWS,
    choice_sample_ids,
    choose_codec,
    fidelities,
    format_table,
    require_fits,
)
from kdcache.store.codecs.dense import Float32
from kdcache.store.codecs.fidelity import Fidelity, measure_fidelity
from kdcache.store.codecs.lowrank import LowRank
from kdcache.store.codecs.request import CodecRequest
from kdcache.store.codecs.sampled import Sampled
from tests.store.codecs import drawn_logits, softmax

# Requests


@pytest.mark.parametrize(
    ("text", "name", "parameters"),
    [
        ("auto", "auto", {}),
        (" dense ", "dense", {}),
        ("topk", "topk", {}),
        ("topk(k=32)", "topk", {"k": 32}),
        ("lowrank(r=64, k=10)", "lowrank", {"r": 64, "k": 10}),
        ("sampled(draws=50, temperature=4)", "sampled", {"draws": 50, "temperature": 4.0}),
        ("sampled(temperature=0.5, seed=0)", "sampled", {"temperature": 0.5, "seed": 0}),
    ],
)
def test_a_request_is_parsed_and_formatted(text, name, parameters):
    request = CodecRequest.parse(text)
    assert (request.name, request.parameters) == (name, parameters)
    assert CodecRequest.parse(str(request)) == request


@pytest.mark.parametrize(
    "text",
    [
        *("", "zip", "topk(", "topk(10)", "topk(r=3)", "dense(k=3)", "topk(k=3, k=4)"),
        *("topk(k=2.5)", "topk(k='3')", "topk(k=True)", "sampled(temperature='1')", "auto(k=1)"),
        *("lowrank(**{'k': 1})", "topk(k=x)", "a.b(k=1)", "topk(k=-1+x)"),
    ],
)
def test_the_error_of_a_malformed_request_lists_the_known_forms(text):
    with pytest.raises(ConfigError, match=r"It takes: auto, dense, int8, topk\(k=10\)") as error:
        CodecRequest.parse(text)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("topk(k=0)", "k of topk is 0, expected a number of at least 1"),
        ("lowrank(r=-3)", "r of lowrank is -3, expected a number of at least 1"),
        ("sampled(temperature=0)", "temperature of sampled is 0.0, expected a number above 0"),
        ("sampled(temperature=1e999)", "temperature of sampled is inf, expected"),
        ("sampled(seed=-1)", "seed of sampled is -1, expected a number of at least 0"),
        (f"sampled(seed={1 << 64})", r"seed of sampled is 18446744073709551616, expected .* 2\^64"),
    ],
)
def test_the_error_of_a_parameter_out_of_range_names_it(text, message):
    with pytest.raises(ConfigError, match=message):
        CodecRequest.parse(text)


# Fidelity


def reference(logits_BC, decoded_BC, temperature):
    """Return angle, ratio and KL, in plain numpy on one block."""
    noise_BC = generator(0, "assumed-student").standard_normal(logits_BC.shape)
    student_BC = 0.7 * logits_BC + 0.3 * logits_BC.std(axis=1, keepdims=True) * noise_BC
    student, exact, decoded = (
        softmax(array_BC / temperature) for array_BC in (student_BC, logits_BC, decoded_BC)
    )
    first, second = student - exact, student - decoded
    lengths = np.linalg.norm(first), np.linalg.norm(second)
    angle = np.degrees(np.arccos((first * second).sum() / np.prod(lengths)))
    kl = (exact * np.log(exact / decoded)).sum(axis=1).mean()
    return angle, lengths[1] / lengths[0], kl


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_angle_ratio_and_divergence_match_their_definitions(temperature):
    logits_BC = drawn_logits(30, 40).astype(np.float64)
    decoded_BC = logits_BC + np.random.default_rng(5).standard_normal(logits_BC.shape)
    found = measure_fidelity(logits_BC, decoded_BC, temperature=temperature)
    expected = (temperature, *reference(logits_BC, decoded_BC, temperature))
    assert found == pytest.approx(expected, rel=1e-9)


def test_many_rows_are_measured_as_one_vector(monkeypatch):
    logits_BC, decoded_BC = drawn_logits(30, 40), drawn_logits(30, 40, seed=1)
    whole = measure_fidelity(logits_BC, decoded_BC, temperature=2.0)
    monkeypatch.setattr("kdcache.store.codecs.fidelity._BLOCK_LOGITS", 7 * 40)
    assert measure_fidelity(logits_BC, decoded_BC, temperature=2.0) == pytest.approx(whole)


def test_exact_logits_and_a_constant_in_a_row_change_no_gradient():
    logits_BC = drawn_logits(20, 30)
    shifted_BC = logits_BC.astype(np.float64) + np.arange(20)[:, None]
    for decoded_BC in (logits_BC, shifted_BC):
        found = measure_fidelity(logits_BC, decoded_BC, temperature=2.0)
        assert found == pytest.approx((2.0, 0.0, 1.0, 0.0), abs=1e-5)


def test_one_class_has_no_gradient_and_no_angle():
    ones = np.ones((4, 1), np.float32)
    assert measure_fidelity(ones, 2 * ones, temperature=1.0) == (1.0, 0.0, 1.0, 0.0)


def test_a_gradient_is_not_accepted_if_the_exact_one_is_0():
    flat = np.zeros((4, 3), np.float32)
    assert measure_fidelity(flat, drawn_logits(4, 3), temperature=1.0).angle_degrees == 90.0
    assert not measure_fidelity(flat, drawn_logits(4, 3), temperature=1.0).is_accepted


@pytest.mark.parametrize(
    ("angle", "ratio", "is_accepted"),
    [
        *((10.0, 1.0, True), (10.01, 1.0, False)),
        *((0.0, 0.95, True), (0.0, 0.949, False), (0.0, 1.05, True), (0.0, 1.051, False)),
    ],
)
def test_a_gradient_is_accepted_up_to_10_degrees_and_5_percent(angle, ratio, is_accepted):
    assert Fidelity(1.0, angle, ratio, 0.0).is_accepted is is_accepted


# The choice


def choose(request, logits_NC):
    return choose_codec(request, logits_NC, np.arange(len(logits_NC)))


def test_auto_chooses_the_smallest_codec_accepted_at_1_2_and_4():
    choice = choose("auto", drawn_logits(600, 120))
    sizes = [row["row_bytes"] for row in choice.table]
    assert sizes == sorted(sizes)
    accepted = [row for row in choice.table if {1.0, 2.0, 4.0} <= set(row["accepted_for"])]
    assert str(choice.codec) == accepted[0]["codec"]
    assert [row["codec"] for row in choice.table if row["chosen"]] == [str(choice.codec)]
    # Eight directions and a little noise: a basis is worth its bytes, a uniform tail is not.
    assert isinstance(choice.codec, LowRank)
    assert choice.table[0]["codec"] == "topk(k=10)"
    assert 4.0 not in choice.table[0]["accepted_for"]


def test_auto_chooses_dense_if_no_codec_is_smaller():
    choice = choose("auto", drawn_logits(100, 3))
    assert [row["codec"] for row in choice.table] == ["dense"]
    assert str(choice.codec) == "dense"


def test_the_table_is_json_with_the_measurements():
    choice = choose("auto", drawn_logits(600, 120))
    table = json.loads(json.dumps(choice.table))
    assert table == choice.table
    for row in table:
        temperatures = [found["temperature"] for found in row["fidelity"]]
        assert temperatures == [1.0, 2.0, 4.0, 20.0]
        accepted = [
            found["temperature"]
            for found in row["fidelity"]
            if found["angle_degrees"] <= 10 and 0.95 <= found["norm_ratio"] <= 1.05
        ]
        assert row["accepted_for"] == accepted
    text = format_table(table)
    assert text.count("\n") == len(table)
    (line,) = (line for line in text.splitlines() if "chosen" in line)
    assert line.startswith(str(choice.codec))
    first = next(row for row in table if row["chosen"])["fidelity"][0]
    assert f"{first['angle_degrees']:.1f} / {first['norm_ratio']:.3f}" in line


def test_equal_rows_give_an_equal_choice():
    first, second = (choose("auto", drawn_logits(300, 60)) for _ in range(2))
    assert first == second
    np.testing.assert_array_equal(first.codec.arrays["basis"], second.codec.arrays["basis"])


def test_a_basis_is_measured_on_held_out_rows():
    # 24 rows of noise: the 21 that are fitted are spanned by 20 components, the 3 others are not.
    logits_NC = np.random.default_rng(3).standard_normal((24, 200)).astype(np.float32)
    choice = choose("lowrank(k=1, r=20)", logits_NC)
    seen = fidelities(choice.codec, logits_NC[1:8], np.arange(1, 8), [20.0])
    (unseen,) = (row["fidelity"][-1] for row in choice.table)
    assert seen[0].angle_degrees < 10
    assert unseen["angle_degrees"] > 30


@pytest.mark.parametrize("request_text", ["dense", "int8", "float32"])
def test_a_codec_requested_by_name_is_chosen(request_text):
    choice = choose(request_text, drawn_logits(50, 20))
    assert str(choice.codec) == request_text
    assert [row["chosen"] for row in choice.table] == [True]


@pytest.mark.parametrize(
    ("request_text", "classes", "expected"),
    [
        ("topk", 200, "topk(k=10)"),
        ("topk", 4, "topk(k=4)"),
        ("topk(k=3)", 4, "topk(k=3)"),
        ("lowrank", 200, "lowrank(k=10, r=64)"),
        ("lowrank", 12, "lowrank(k=10, r=12)"),
        ("lowrank(r=5)", 200, "lowrank(k=10, r=5)"),
        ("sampled", 30, "sampled(draws=50, temperature=1.0, seed=0)"),
        ("sampled(draws=9, seed=4)", 30, "sampled(draws=9, temperature=1.0, seed=4)"),
    ],
)
def test_the_defaults_depend_on_the_size_of_the_data(request_text, classes, expected):
    assert str(choose(request_text, drawn_logits(90, classes)).codec) == expected


@pytest.mark.parametrize(
    ("request_text", "message"),
    [
        ("topk(k=21)", "k of topk is 21, expected at most 20, the number of classes"),
        ("lowrank(k=21)", "k of lowrank is 21, expected at most 20"),
        ("lowrank(r=21)", "r of lowrank is 21, expected at most 20"),
    ],
)
def test_parameters_that_are_too_large_for_the_data_are_refused(request_text, message):
    with pytest.raises(ConfigError, match=message):
        choose(request_text, drawn_logits(50, 20))


@pytest.mark.parametrize(
    "request_text", ["topk(k=21)", "lowrank(k=21)", "lowrank(r=21)", "lowrank(r=45)"]
)
def test_a_request_that_does_not_fit_is_refused_before_the_clean_view(request_text):
    """And by the same word as when there are: 44 of 50 rows fit a basis."""
    classes = 60 if "45" in request_text else 20
    request = CodecRequest.parse(request_text)
    with pytest.raises(ConfigError) as later:
        choose(request_text, drawn_logits(50, classes))
    with pytest.raises(ConfigError) as early:
        require_fits(request, 50, classes)
    assert str(early.value) == str(later.value)
    assert request_text.partition("=")[2].rstrip(")") in str(early.value)


@pytest.mark.parametrize("request_text", ["auto", "dense", "topk(k=20)", "lowrank(k=20, r=20)"])
def test_a_request_that_fits_is_accepted_before_the_clean_view(request_text):
    require_fits(CodecRequest.parse(request_text), 50, 20)
    assert choose(request_text, drawn_logits(50, 20)).codec.num_classes == 20


def test_a_codec_bound_to_a_temperature_is_measured_there_only():
    choice = choose("sampled(draws=400, temperature=4)", drawn_logits(80, 20, scale=1.0))
    (row,) = choice.table
    assert [found["temperature"] for found in row["fidelity"]] == [4.0]
    assert row["accepted_for"] == [4.0]
    assert isinstance(choice.codec, Sampled)
    assert "<- chosen" in format_table(choice.table)


@pytest.mark.parametrize("rows", [1, 2, 9])
@pytest.mark.parametrize("request_text", ["auto", "topk", "int8"])
def test_a_codec_can_be_chosen_from_a_few_rows(request_text, rows):
    assert choose(request_text, drawn_logits(rows, 20)).codec.num_classes == 20


def test_a_basis_needs_at_least_one_row():
    with pytest.raises(ConfigError, match=r"r of lowrank is 1, expected at most 0: .* 0 rows"):
        choose("lowrank", drawn_logits(1, 20))


def test_fidelity_is_measured_at_the_given_temperatures():
    logits_BC = drawn_logits(20, 30)
    found = fidelities(Float32(30), logits_BC, np.arange(20), [7.0, 3.0])
    assert [fidelity.temperature for fidelity in found] == [7.0, 3.0]
    assert all(fidelity.is_accepted for fidelity in found)


@pytest.mark.parametrize(
    ("samples", "classes", "expected"),
    [(100, 10, 100), (10**6, 10, MAX_ROWS), (10**6, 21_841, 2**25 // 21_841), (5, 2**26, 1)],
)
def test_the_number_of_samples_for_the_choice_is_limited(samples, classes, expected):
    ids = choice_sample_ids(samples, classes)
    assert len(ids) == expected
    assert (np.diff(ids) > 0).all()
    assert 0 <= ids[0] <= ids[-1] < samples
    np.testing.assert_array_equal(ids, choice_sample_ids(samples, classes))
    if expected < samples and expected > 1:
        assert not np.array_equal(ids, choice_sample_ids(samples, classes, seed=1))
