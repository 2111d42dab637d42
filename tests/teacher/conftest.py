"""Published weights on a server of the test's own, and an empty cache of torch hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.teacher.server import Server, serving


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Torch hub's folder of checkpoints."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def server(tmp_path: Path, hub: Path) -> Iterator[Server]:  # noqa: ARG001  (hub is empty)
    """A server of an empty folder."""
    folder = tmp_path / "published"
    folder.mkdir()
    with serving(folder) as running:
        yield running
