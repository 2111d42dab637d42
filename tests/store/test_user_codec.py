"""A codec of the user's own, through the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kdcache.store.codecs.request import CodecRequest
from kdcache.store.logit_store import LogitStore
from tests.conftest import ROOT
from tests.workspaces import copy_workspace

CODEC = """
from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace

from kdcache.store.codecs.codec import Codec

@dataclass(frozen=True)
class Grid(Codec):
    step: float = 0.5

    request_parameters = {"step": (float, 0)}

    @property
    def dtype(self):
        return np.dtype("<i2")

    @property
    def row_width(self):
        return self.num_classes

    @property
    def parameters(self):
        return {"step": self.step}

    def _encode(self, logits, ids, view, /):
        return np.rint((logits - logits.mean(axis=1, keepdims=True)) / self.step).astype("<i2")

    def _decode(self, rows, temperature, /):
        xp = array_namespace(rows)
        return xp.astype(rows, xp.float32) * self.step

    def _in_range(self, logits, /):
        return np.ones(len(logits), dtype=bool)

class Unfinished(Codec):
    pass

def function(logits):
    return logits
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder, which is not on Python's path."""
    name = f"codecs_of_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(CODEC)
    monkeypatch.chdir(tmp_path)
    return name


def run(*words: str, folder: Path, workspace: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kdcache", *words, "--workspace", str(workspace)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_store_is_built_read_verified_and_trained_from(
    tiny_workspace, tiny_store, module, tmp_path
):
    workspace = copy_workspace(tiny_workspace, tmp_path / "workspace")
    spelled = f"{module}:Grid(step=0.25)"
    build = ["build-logits", "--teacher", "tests.teachers:projection", "--views", "2"]
    build += ["--codec", spelled, "--store", "grid.zarr", "--batch-size", "8", "--device", "cpu"]
    for words in (
        build,
        ["verify", "--store", "grid.zarr"],
        ["train", "--store", "grid.zarr", "--subset", "full", "--model", "resnet8", "--steps", "1"],
    ):
        process = run(*words, folder=tmp_path, workspace=workspace)
        assert process.returncode == 0, process.stderr
    store = LogitStore.open("grid.zarr")
    assert str(store.codec) == spelled
    ids = np.arange(store.manifest.samples)
    exact = tiny_store.logits(ids, 1)
    exact = exact - exact.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(store.logits(ids, 1), exact, atol=0.126)
    # Where its code is missing, the store is not taken for a damaged one.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    words = ["verify", "--repair", "--store", str(tmp_path / "grid.zarr")]
    process = run(*words, folder=elsewhere, workspace=workspace)
    assert process.returncode != 0
    assert f"No module named '{module}'" in process.stderr
    assert (tmp_path / "grid.zarr" / "codec.npz").exists()
    assert json.loads((tmp_path / "grid.zarr" / "zarr.json").read_text())["attributes"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}:Grid(stride=1)", "expected step at character"),
        ("{}:Grid(step=0)", "expected a number above 0"),
        ("{}:function", "expected a subclass of"),
        ("{}:absent", "absent"),
        ("{}:Unfinished", "expected a codec that defines .*row_width.* too"),
    ],
)
def test_a_wrong_request_is_refused(module, text, message):
    with pytest.raises(ValueError, match=message):
        CodecRequest.parse(text.format(module))
