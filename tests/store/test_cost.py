"""What a build says of its cost before it starts, and in its result."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest

from kdcache.selection.subset import Subset
from kdcache.store.build.cost import Cost, format_duration
from tests.store.builds import NUM_SAMPLES, PROJECTION, SLOW, build
from tests.store.teachers import DELAY


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0312, "0.031 s"),
        (9.96, "10 s"),
        (119.4, "119 s"),
        (121, "2 min"),
        (7190, "120 min"),
        (7300, "2.0 h"),
        (200_000, "55.6 h"),
    ],
)
def test_a_time_is_shown_for_people(seconds, shown):
    assert format_duration(seconds) == shown


def test_the_line_says_it_all():
    line = str(Cost(1_234, 90.4, 5_678_901, 9.0))
    assert line.startswith("1,234 images through the teacher, about 90 s, 5,678,901 bytes in the")
    assert "as many forwards in 9.0 student epochs, over all runs" in line
    assert "bytes" not in str(Cost(1_234, 90.4, None, 9.0))


def test_a_build_tells_its_cost_before_it_starts_and_keeps_it_in_the_result(workspace, caplog):
    with caplog.at_level(logging.INFO):
        result = build(workspace, views=3)
    cost = result["cost"]
    # One forward an image and view; a live teacher makes one an image and epoch.
    assert cost["break_even_epochs"] == result["teacher_forwards"] / NUM_SAMPLES == 4
    assert cost["expected_bytes"] > 4 * 4 * 4 * NUM_SAMPLES
    assert 0 < cost["seconds"] <= result["seconds"]
    (line,) = [line for line in caplog.messages if "through the teacher" in line]
    stored = f"{cost['expected_bytes']:,}"
    match = re.match(rf"288 images .*, about ([\d.]+) s, {stored} bytes in .* in 4\.0 stud", line)
    assert match
    assert float(match[1]) == pytest.approx(cost["expected_seconds"], abs=0.05)
    assert re.search(rf"pass took [\d.]+ s, expected about {match[1]} s", caplog.text)


def test_the_expected_time_is_that_of_warm_forwards(workspace, monkeypatch):
    monkeypatch.setenv(DELAY, "0.02")
    cost = build(workspace, SLOW, views=1)["cost"]
    least = 2 * (NUM_SAMPLES // 8) * 0.02
    # Decoding 8 images of 32 px takes well under a millisecond; other work on the machine may not.
    assert least <= cost["expected_seconds"] <= cost["seconds"] * 3
    assert least <= cost["seconds"]


def test_a_subset_is_paid_for_by_epochs_of_its_own_size(workspace):
    kept = np.arange(0, NUM_SAMPLES, 3)
    Subset(kept).save(workspace / "subsets/third.npz")
    alone = build(workspace, PROJECTION, views=2, subset="third")
    assert alone["teacher_forwards"] == NUM_SAMPLES + 2 * len(kept)
    assert alone["cost"]["break_even_epochs"] == (NUM_SAMPLES + 2 * len(kept)) / len(kept) == 5


def test_where_the_codec_is_to_be_decided_both_passes_are_counted_and_no_bytes(workspace, caplog):
    with caplog.at_level(logging.INFO):
        result = build(workspace, views=2, codec="int8")
    assert result["cost"]["expected_bytes"] is None
    assert result["cost"]["break_even_epochs"] == 3
    assert any(re.search(r"^[\d,]+ bytes when views 0 to 2", line) for line in caplog.messages)


def test_a_part_counts_its_own_images_and_the_epochs_of_all_parts(workspace, caplog):
    with caplog.at_level(logging.INFO):
        result = build(workspace, views=3, part="1/3")
    assert result["teacher_forwards"] == 4 * 3 * 8
    assert "96 images through the teacher" in caplog.text
    assert result["cost"]["break_even_epochs"] == 4


def test_what_is_there_costs_nothing(store_path, workspace, caplog):
    assert store_path.exists()
    with caplog.at_level(logging.INFO):
        assert build(workspace)["cost"] is None
    assert "through the teacher" not in caplog.text
    assert "up to date" in caplog.text
    (store_path / "views/2/rows/c/4/0").unlink()
    assert build(workspace)["cost"]["break_even_epochs"] == pytest.approx(8 / NUM_SAMPLES, abs=1e-3)
