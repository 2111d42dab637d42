"""Several students: each as if it were trained alone; mean and spread over them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdcache.errors import CacheMismatchError, ConfigError
from kdcache.files import read_json
from kdcache.training.train import train
from tests.training.loops import assert_same_run, options


@pytest.fixture
def two(workspace: Path) -> dict:
    return train(options(workspace, seed=4, seeds=2, epochs=1)).to_json()


def test_each_student_is_the_one_that_its_seed_gives_alone(workspace, two):
    assert two["seeds"] == [4, 5]
    alone = train(options(workspace, seed=5, epochs=1, out=workspace / "alone")).to_json()
    paths = [Path(run["path"]) for run in two["runs"]]
    assert [path.name for path in paths] == ["resnet8-fifty-s4", "resnet8-fifty-s5"]
    assert_same_run(paths[1], Path(alone["path"]))
    for name in ("top1", "top1_best", "top5", "samples", "teacher_forwards"):
        assert two["runs"][1][name] == alone[name]


def test_mean_and_spread_are_those_of_a_sample(workspace, messages):
    result = train(options(workspace, seeds=3, epochs=1)).to_json()
    for name in ("top1", "top1_best", "top5"):
        values = [run[name] for run in result["runs"]]
        assert result[name]["mean"] == pytest.approx(np.mean(values))
        assert result[name]["std"] == pytest.approx(np.std(values, ddof=1))
    assert result["top1_ema"] is None
    said = [message for message in messages if message.startswith("seed ")]
    assert [message.partition(":")[0] for message in said] == [
        "seed 0 (1 of 3)",
        "seed 1 (2 of 3)",
        "seed 2 (3 of 3)",
    ]
    assert f"top-1 {result['runs'][2]['top1']:.2f} %" in said[2]


def test_with_out_their_folders_lie_in_one(workspace):
    result = train(options(workspace, seed=1, seeds=2, epochs=1, out=workspace / "both")).to_json()
    assert sorted(path.name for path in (workspace / "both").iterdir()) == ["s1", "s2"]
    assert [
        read_json(Path(run["path"]) / "config.json")["config"]["seed"] for run in result["runs"]
    ] == [1, 2]
    with pytest.raises(ConfigError, match=r"out=.*both/s1: it exists"):
        train(options(workspace, seed=1, seeds=2, epochs=1, out=workspace / "both"))


@pytest.mark.parametrize("given", ["name", "out"])
def test_a_resume_finishes_what_is_there_and_begins_what_is_not(workspace, given):
    where = {} if given == "name" else {"out": workspace / "all"}
    first = train(options(workspace, seed=7, seeds=2, **where)).to_json()
    unfinished = Path(first["runs"][1]["path"])
    for name in ("resume", "last", "best"):
        (unfinished / f"{name}.safetensors").unlink()
    result = train(options(workspace, seed=7, seeds=3, resume=True, **where)).to_json()
    assert [run["resumed_from_epoch"] for run in result["runs"]] == [2, 0, 0]
    assert [run["path"] for run in result["runs"][:2]] == [run["path"] for run in first["runs"]]
    for name in ("top1", "top1_best"):
        assert [run[name] for run in result["runs"][:2]] == [run[name] for run in first["runs"]]


@pytest.mark.usefixtures("two")
def test_a_resume_with_other_options_is_refused(workspace):
    with pytest.raises(CacheMismatchError, match=r"lr is 0\.5, found 0\.025"):
        train(options(workspace, seed=4, seeds=2, epochs=1, lr=0.5, resume=True))
