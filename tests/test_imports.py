"""What each command loads: a heavy library costs seconds before a command does anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from kdcache.commands import COMMANDS
from tests.conftest import ROOT

HEAVY = {
    *("cv2", "datasets", "ffcv", "numba", "pandas", "PIL", "pyarrow", "safetensors"),
    *(
        "scipy.linalg",
        "sklearn",
        "tensorboard",
        "timm",
        "torch",
        "torch._dynamo",
        "torchvision",
        "zarr",
    ),
}

OPENS_STORE = {"numba", "zarr"}
RUNS_COMPILED = {"numba", "scipy.linalg"}
"""numba takes BLAS from scipy when it loads a compiled function."""

EXPORTS = {"pyarrow", *({"pandas"} if find_spec("pandas") else ())}
"""pyarrow itself looks at pandas where it is installed."""

RUNS_MODEL = OPENS_STORE | RUNS_COMPILED | {"safetensors", "torch"}
TRAINS = RUNS_MODEL | {"torch._dynamo"}
"""The first optimizer of torch.optim loads torch's compiler."""

STEPS = ("--model", "resnet8", "--steps", "1")
WALK: list[tuple[list[str], set[str]]] = [
    (["pack", "digits"], {"PIL"} | EXPORTS),
    (["train-teacher", *STEPS], TRAINS),
    (["build-logits", "--views", "1"], RUNS_MODEL),
    (["select"], OPENS_STORE | RUNS_COMPILED),
    (["score", "el2n"], OPENS_STORE),
    (["train", *STEPS], TRAINS),
    (["evaluate"], RUNS_MODEL),
    (["verify"], OPENS_STORE),
    (["export", "logits.parquet"], OPENS_STORE | EXPORTS),
    (["show", "workspace/train.beton"], {"zarr"} | EXPORTS),
    (["show", "workspace/stores/resnet8.zarr"], OPENS_STORE),
    ([], OPENS_STORE | {"safetensors"}),
]
"""Words of a command line, and all that it loads of `HEAVY`; each needs those before it."""

ELSEWHERE = {
    "merge": "of parts, in tests/store/test_merge.py; it runs no model and reads no image",
    "run": "tests/pipeline_runs/test_runner.py: it loads what its steps load, and nothing again",
    "study": "it checks models and starts every other command, so it may load anything",
    "doctor": "each group of its checks is a process that loads what it checks",
}

REPORT = """
import json, sys
from kdcache.cli import main
status = main(json.loads(sys.argv[1]))
print(json.dumps([status, sorted(set(json.loads(sys.argv[2])) & sys.modules.keys())]))
"""


def loaded_by(arguments: list[str], folder: Path) -> set[str]:
    """Return what a command loads of `HEAVY`, in a process of its own."""
    process = subprocess.run(
        [sys.executable, "-c", REPORT, json.dumps(arguments), json.dumps(sorted(HEAVY))],
        cwd=folder,
        env=os.environ | {"KDCACHE_WORKSPACE": "workspace", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    status, loaded = json.loads(process.stdout.splitlines()[-1])
    assert status == 0, process.stderr
    return set(loaded)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """What each command of the walk loads, by its words."""
    folder = tmp_path_factory.mktemp("imports")
    return {tuple(arguments): loaded_by(arguments, folder) for arguments, _ in WALK}


def test_every_command_is_in_the_list():
    assert {words[0] for words, _ in WALK if words} | ELSEWHERE.keys() == COMMANDS.keys()


@pytest.mark.parametrize(
    ("arguments", "expected"), WALK, ids=[" ".join(words) for words, _ in WALK]
)
def test_a_command_loads_these_heavy_libraries_and_no_other(loaded, arguments, expected):
    assert loaded[tuple(arguments)] == expected


def test_a_model_of_torchvision_loads_torchvision():
    code = (
        "import sys; from kdcache.models.registry import make_model;"
        "make_model('vgg8', num_classes=3, image_size=32);"
        "before = 'torchvision' in sys.modules;"
        "make_model('resnet18', num_classes=3, image_size=32);"
        "sys.exit(before or 'torchvision' not in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
