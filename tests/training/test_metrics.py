"""Each epoch's line once, in JSON and for TensorBoard, however often the run was stopped."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kdcache.errors import ConfigError
from kdcache.training.metrics import MetricsLog, require_tensorboard
from tests.workspaces import metrics


def line(epoch: int, loss: float) -> dict[str, object]:
    return {"epoch": epoch, "loss": loss, "top1": None if epoch == 2 else 10.0 * epoch}


def events(run_dir: Path, name: str) -> list[tuple[int, float]]:
    """What TensorBoard shows of a curve, by its own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(run_dir / "tensorboard"))
    shown.Reload()
    return [(event.step, event.value) for event in shown.Scalars(name)]


def test_tensorboard_shows_what_the_lines_say(tmp_path):
    with MetricsLog(tmp_path, epochs_done=0, tensorboard=True) as log:
        for epoch in (1, 2, 3):
            log.write(line(epoch, 0.5 * epoch))
    assert events(tmp_path, "loss") == [(1, 0.5), (2, 1.0), (3, 1.5)]
    assert events(tmp_path, "top1") == [(1, 10.0), (3, 30.0)]
    assert metrics(tmp_path) == [line(epoch, 0.5 * epoch) for epoch in (1, 2, 3)]


def test_an_epoch_that_is_trained_again_is_shown_once(tmp_path):
    with MetricsLog(tmp_path, epochs_done=0, tensorboard=True) as log:
        for epoch in (1, 2, 3):
            log.write(line(epoch, 1.0))
    with MetricsLog(tmp_path, epochs_done=1, tensorboard=True) as log:
        for epoch in (2, 3, 4):
            log.write(line(epoch, 2.0))
    assert events(tmp_path, "loss") == [(1, 1.0), (2, 2.0), (3, 2.0), (4, 2.0)]
    assert [entry["loss"] for entry in metrics(tmp_path)] == [1.0, 2.0, 2.0, 2.0]


def test_events_are_on_the_disk_after_each_epoch(tmp_path):
    with MetricsLog(tmp_path, epochs_done=0, tensorboard=True) as log:
        log.write(line(1, 0.25))
        log.write(line(2, 0.5))  # the first alone would be written at once anyway
        assert events(tmp_path, "loss") == [(1, 0.25), (2, 0.5)]


def test_without_tensorboard_there_are_no_events(tmp_path):
    with MetricsLog(tmp_path, epochs_done=0, tensorboard=False) as log:
        log.write(line(1, 0.25))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_where_tensorboard_is_missing_its_remedy_is_named(monkeypatch):
    require_tensorboard()
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'kdcache\[tensorboard\]'"):
        require_tensorboard()
