"""Building a store: what is computed, what is refused, and that it survives every death."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torchvision.transforms.functional import normalize

from kdcache.data.beton import open_beton
from kdcache.errors import (
    CacheIncompleteError,
    CacheMismatchError,
    ConfigError,
    DatasetError,
    KDCacheError,
    TeacherError,
)
from kdcache.reader.batches import view_pixels
from kdcache.scores.predictions import STATS
from kdcache.scores.registry import SCORES
from kdcache.store.logit_store import LogitStore
from tests import teachers
from tests.conftest import ROOT
from tests.store.builds import NUM_SAMPLES, SLOW, build
from tests.store.conftest import fresh_workspace, snapshot
from tests.store.editing import change_manifest
from tests.store.teachers import DELAY, SHAPES_SEEN, Failing


def shards_of(path: Path) -> int:
    return sum(1 for file in path.glob("views/*/rows/c/*/0") if file.is_file())


def partials_of(workspace: Path) -> list[Path]:
    return list(workspace.rglob("*.partial"))


def normalised_images(workspace: Path, view: int, sample_ids: npt.ArrayLike) -> torch.Tensor:
    """Return what a model sees, in float64 and as torchvision normalises it."""
    beton = open_beton(workspace / "train.beton")
    about = beton.manifest
    images = torch.from_numpy(view_pixels(beton, about.policy, 0, view, sample_ids))
    return normalize(images.permute(0, 3, 1, 2).double() / 255, about.mean, about.std)


def independent_logits(workspace: Path, view: int, sample_ids: npt.ArrayLike) -> np.ndarray:
    """Answer like `tests.teachers:projection`, in float64 and without our forward pass."""
    weight = teachers.projection().weight.detach().double()
    images = normalised_images(workspace, view, sample_ids)
    return (images.flatten(1) @ weight.T).numpy()


@pytest.mark.parametrize("view", [0, 3])
def test_the_logits_are_those_of_the_teacher_on_the_pixels_of_the_view(
    tiny_store, tiny_workspace, view
):
    ids = np.random.default_rng(view).permutation(NUM_SAMPLES)[:40]
    expected = independent_logits(tiny_workspace, view, ids)
    # Sums of 3,072 products in float32; two views differ by 0.1 and more.
    np.testing.assert_allclose(tiny_store.logits(ids, view), expected, rtol=0, atol=1e-4)


def test_a_codec_that_cannot_be_is_refused_before_the_teacher_is_asked(workspace):
    SHAPES_SEEN.clear()
    with pytest.raises(ConfigError, match="k of topk is 9, expected at most 4"):
        build(workspace, "tests.store.teachers:counted", codec="topk(k=9)")
    assert SHAPES_SEEN == []
    assert not list(workspace.glob("stores/*.zarr"))


def test_the_scores_are_those_of_the_clean_view(tiny_store, tiny_workspace):
    labels = open_beton(tiny_workspace / "train.beton").labels
    np.testing.assert_array_equal(tiny_store.labels, labels)
    logits_BC = torch.from_numpy(tiny_store.logits(np.arange(NUM_SAMPLES), 0))
    for name, score in SCORES.items():
        expected = score(logits_BC, torch.from_numpy(labels)).numpy()
        np.testing.assert_array_equal(tiny_store.scores[name], expected)
    for name, statistic in STATS.items():
        expected = statistic(logits_BC, torch.from_numpy(labels)).numpy()
        np.testing.assert_array_equal(tiny_store.stats[name], expected)


def test_a_build_reports_what_it_did_and_a_second_one_does_nothing(workspace):
    SHAPES_SEEN.clear()
    first = build(workspace, "tests.store.teachers:counted", views=1, batch_size=16)
    path = workspace / "stores" / "counted.zarr"
    assert first["path"] == str(path.resolve())
    assert (first["samples"], first["views"]) == (NUM_SAMPLES, 1)
    assert first["teacher_forwards"] == NUM_SAMPLES * 2
    # A batch twice; four of labelled images, with the data's mean and std and three others; then
    # five a view, the last of them padded: every forward has one shape.
    assert SHAPES_SEEN == [(16, 3, 32, 32)] * (2 + 4 * (1 + 3) + 5 * 2)
    content = snapshot(path)
    assert first["bytes"] == sum(map(len, content.values()))
    assert json.loads((workspace / "workspace.json").read_text())["store"] == "stores/counted.zarr"

    SHAPES_SEEN.clear()
    second = build(workspace, "tests.store.teachers:counted", views=1, batch_size=16)
    changed = {"seconds": 0, "teacher_forwards": 0, "train_quality": None, "cost": None}
    assert second | {"seconds": 0} == first | changed
    assert SHAPES_SEEN == []
    assert snapshot(path) == content


def test_the_batch_size_changes_shards_and_no_logits(workspace, tiny_store):
    # Shards of two batches each, where `tiny_store` has one batch a shard.
    build(workspace, views=0, batch_size=2)
    store = LogitStore.open(workspace / "stores" / "projection.zarr")
    assert store.manifest.shard_rows == 4
    actual, expected = (found.logits(range(NUM_SAMPLES), 0) for found in (store, tiny_store))
    # Another batch size may add 3,072 products in another order.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


def test_more_views_leave_the_old_ones_as_they_are(store_path, workspace):
    before = snapshot(store_path)
    times = {name: (store_path / name).stat().st_mtime_ns for name in before}
    (store_path / "views/4/rows").mkdir(parents=True)  # of a build that was killed right there
    assert LogitStore.open(store_path).num_views == 3
    result = build(workspace, views=5)
    assert (result["views"], result["teacher_forwards"]) == (5, 2 * NUM_SAMPLES)
    after = snapshot(store_path)
    assert {name: after[name] for name in before} == before
    assert {name: (store_path / name).stat().st_mtime_ns for name in before} == times
    store = LogitStore.open(store_path)
    assert store.num_views == 5
    expected = independent_logits(workspace, 5, range(NUM_SAMPLES))
    np.testing.assert_allclose(store.logits(range(NUM_SAMPLES), 5), expected, rtol=0, atol=1e-4)


def test_fewer_views_keep_the_store_as_it_is(store_path, workspace):
    before = snapshot(store_path)
    result = build(workspace, views=1)
    assert (result["views"], result["teacher_forwards"]) == (3, 0)
    assert snapshot(store_path) == before


def test_a_build_fills_the_gaps_and_gives_the_same_bytes(store_path, workspace):
    before = snapshot(store_path)
    gone = [
        "views/0/rows/c/0/0",
        "views/0/rows/c/8/0",
        "scores/margin/c/8",
        "stats/correct/c/3",
        "views/2/rows/c/4/0",
        "views/2/complete",
        "views/3/complete",
    ]
    for name in gone:
        (store_path / name).unlink()
    (store_path / "views/2/rows/c/5/0.0123abcd.partial").write_bytes(b"half")
    # What is left open follows the store that is there.
    result = build(workspace, batch_size=None)
    # Shards 0, 3 and 8 of the clean view and shard 4 of view 2, of 8 rows each.
    assert result["teacher_forwards"] == 4 * 8
    assert snapshot(store_path) == before


def test_gaps_are_not_filled_under_other_conditions(store_path, workspace):
    assert build(workspace, batch_size=16)["teacher_forwards"] == 0  # nothing to fill
    (store_path / "views/1/rows/c/2/0").unlink()
    before = snapshot(store_path)
    with pytest.raises(CacheMismatchError, match="batch_size is 16, found 8"):
        build(workspace, batch_size=16)
    assert snapshot(store_path) == before


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"policy": "clean"}, ["policy is 'clean', found 'pad-crop(4, flip=True)'"]),
        ({"view_seed": 1}, ["view_seed is 1, found 0"]),
        ({"codec": "dense"}, ["codec is 'dense', found 'float32'"]),
        ({"precision": "bf16"}, ["precision is 'bf16', found 'fp32'"]),
        ({"image_size": 16}, ["image_size is 16, found 32", "teacher_size is 16, found 32"]),
        ({"teacher": "tests.store.teachers:projection"}, ["teacher_digest is "]),
        (
            {"policy": "pad-crop(2)", "view_seed": 7, "codec": "dense"},
            ["policy is 'pad-crop(2, flip=True)'", "view_seed is 7", "codec is 'dense'"],
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_store_of_something_else_is_refused_and_what_differs_is_named(
    store_path, workspace, changed, named
):
    before = snapshot(store_path)
    with pytest.raises(CacheMismatchError, match="was built from other inputs") as error:
        build(workspace, **changed)
    message = str(error.value)
    assert all(part in message for part in named)
    assert message.count(", found ") == len(named)
    assert "overwrite=True" in message
    assert snapshot(store_path) == before


def test_a_store_of_other_data_is_refused(store_path, workspace):
    change_manifest(store_path, data_fingerprint="f" * 64)
    before = snapshot(store_path)
    with pytest.raises(CacheMismatchError, match=f"data_fingerprint is .*, found '{'f' * 64}'"):
        build(workspace)
    assert snapshot(store_path) == before


def test_overwrite_replaces_a_store_of_something_else(store_path, workspace, tiny_store):
    result = build(workspace, views=0, view_seed=5, codec="dense", overwrite=True)
    assert (result["views"], result["teacher_forwards"]) == (0, NUM_SAMPLES)
    store = LogitStore.open(store_path)
    assert (store.num_views, store.manifest.view_seed, store.manifest.codec) == (0, 5, "dense")
    assert not partials_of(workspace)
    # The clean view has no seed: these are the same logits, within the bound of the codec.
    exact = tiny_store.logits(range(NUM_SAMPLES), 0).astype(np.float64)
    exact -= exact.mean(axis=1, keepdims=True)
    error = np.abs(store.logits(range(NUM_SAMPLES), 0) - exact)
    assert (error <= np.abs(exact) * 2**-11 + 1e-5).all()  # centred in float32
    for name in SCORES:  # from the logits before any codec
        np.testing.assert_array_equal(store.scores[name], tiny_store.scores[name])


@pytest.fixture
def failing_teacher() -> Iterator[type[Failing]]:
    yield Failing
    Failing.bad = None


# The check before the pass does not draw sample 29; sample 13 fails in view 1 alone.
@pytest.mark.parametrize(("view", "sample_id"), [(0, 29), (1, 13)])
def test_a_teacher_that_answers_nan_is_refused_and_the_sample_is_named(
    workspace, tiny_store, failing_teacher, view, sample_id
):
    failing_teacher.bad = normalised_images(workspace, view, [sample_id])[0].float()
    with pytest.raises(TeacherError, match=rf"view {view} of sample {sample_id} .*1 samp"):
        build(workspace, "tests.store.teachers:failing", views=1)
    path = workspace / "stores" / "failing.zarr"
    # What was answered before is kept, whole; of the bad shard there is nothing.
    shards = {name: content for name, content in snapshot(path).items() if "/c/" in name}
    expected = snapshot(tiny_store.path)
    assert shards == {name: expected[name] for name in shards}
    assert f"views/{view}/rows/c/{sample_id // 8}/0" not in shards
    assert f"views/0/rows/c/{sample_id // 8 - 1}/0" in shards
    with_scores = {name.split("/")[-1] for name in shards if name.startswith("scores/")}
    with_rows = {name.split("/")[-2] for name in shards if name.startswith("views/0/")}
    assert with_scores == with_rows
    assert not partials_of(workspace)
    assert not (workspace / "workspace.json").exists()
    with pytest.raises(CacheIncompleteError, match="holds 0 of 2 views"):
        LogitStore.open(path)


def test_logits_beyond_the_range_of_the_codec_are_refused(workspace):
    with pytest.raises(TeacherError, match=r"view 0 of sample \d .*codec float32"):
        build(workspace, "tests.store.teachers:huge", views=0, codec="dense")
    assert shards_of(workspace / "stores" / "huge.zarr") == 0


def test_a_teacher_with_another_number_of_classes_is_refused(workspace):
    with pytest.raises(TeacherError, match=r"returns \(8, 5\) for 8 images, .*\(8, 4\)") as error:
        build(workspace, "tests.teachers:five_classes", views=0)
    assert "kdcache train-teacher" in str(error.value)
    assert shards_of(workspace / "stores" / "five_classes.zarr") == 0


def test_a_workspace_without_data_names_the_command_that_packs_some(tmp_path):
    with pytest.raises(DatasetError, match=r"train\.beton is missing.*kdcache pack"):
        build(tmp_path)


def test_a_teacher_that_does_not_exist_leaves_no_store(workspace):
    with pytest.raises(ConfigError, match="teacher=resnet9"):
        build(workspace, "resnet9")
    assert not (workspace / "stores").exists()


# What follows kills processes. Each store is compared with that of an undisturbed build.


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny_workspace) -> dict[str, bytes]:
    """The files of a store of `slow` with two views that nobody disturbed."""
    workspace = fresh_workspace(tmp_path_factory.mktemp("undisturbed") / "w", tiny_workspace)
    return snapshot(Path(build(workspace, SLOW, views=2)["path"]))


def arguments(workspace: Path) -> list[str]:
    """Return the command line of `build(workspace, SLOW, views=2)`."""
    return [
        *("build-logits", "--teacher", SLOW, "--views", "2", "--codec", "float32"),
        *("--batch-size", "8", "--device", "cpu", "--quiet", "--workspace", str(workspace)),
    ]


def wait_for(condition: Any, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_build_that_was_killed_goes_on_where_it_was_and_gives_the_same_bytes(
    workspace, undisturbed
):
    path = workspace / "stores" / "slow.zarr"
    with subprocess.Popen(
        [sys.executable, "-m", "kdcache", *arguments(workspace)],
        cwd=ROOT,
        env=os.environ | {DELAY: "0.1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            wait_for(lambda: shards_of(path) >= 11, process)
            with pytest.raises(KDCacheError, match=rf"held by process {process.pid} \(build-log"):
                build(workspace, SLOW, views=2)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    kept = shards_of(path)
    assert 11 <= kept < 27
    with pytest.raises(CacheIncompleteError, match="holds 0 of 3 views"):
        LogitStore.open(path)
    for name, content in snapshot(path).items():
        assert name.endswith(".partial") or content == undisturbed[name]

    assert build(workspace, SLOW, views=2)["teacher_forwards"] == (27 - kept) * 8
    assert snapshot(path) == undisturbed
    assert not partials_of(workspace)


AS_FROM_A_TERMINAL = """
import signal, sys
from kdcache.cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main())
"""
"""What a shell starts in the background ignores the signal, and so do these tests then."""


def test_ctrl_c_keeps_what_was_answered_and_the_next_run_goes_on(workspace, undisturbed):
    path = workspace / "stores" / "slow.zarr"
    with subprocess.Popen(
        [sys.executable, "-c", AS_FROM_A_TERMINAL, *arguments(workspace)],
        cwd=ROOT,
        env=os.environ | {DELAY: "0.1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_for(lambda: shards_of(path) >= 5, process)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "interrupted; run the same command again to continue" in said
    assert "Traceback" not in said
    kept = shards_of(path)
    assert 5 <= kept < 27
    assert not partials_of(workspace)
    assert build(workspace, SLOW, views=2)["teacher_forwards"] == (27 - kept) * 8
    assert snapshot(path) == undisturbed
