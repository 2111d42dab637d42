"""The architecture as a test: a file imports only from its own stage and the stages above it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import kdcache

ROOT = Path(kdcache.__file__).parent
PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
STAGES = [
    "errors",
    "arguments",
    "results",
    "calls",
    "registry",
    "scores",
    "selection.methods",  # names of methods, which the options read
    "rng",
    "files",
    "seals",
    "locks",
    "identity",
    "channels",
    "data.policy",  # names of pixel definitions, which the options read
    "options",
    "library",
    "progress",
    "processes",
    "commands",
    "workspace",
    "cgroups",
    "cores",
    "memory",
    "compiled",
    "selection.provenance",
    "selection.report",
    "selection.subset",  # a file of sample ids, which pack and build-logits read too
    "data",
    "reader",
    "compute",
    "models",
    "teacher",
    "store.manifest",
    "store.codecs",
    "store.format",
    "store",
    "store.upkeep",
    "store.build",
    "selection",
    "loader",
    "training",
    "overview",
    "pipeline_runs",
    "checkup",
    "studies",
    "cli",
    "__main__",
]
# The package's own __init__.py may name the library contract; it does so lazily.
MODULES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


def imported_stages(module: Path) -> set[str]:
    """Return the stages that a file names in its imports, wherever they stand in it."""
    nodes = list(ast.walk(ast.parse(module.read_text())))
    names = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    ours = [name.split(".") for name in names if name.split(".")[0] == "kdcache"]
    return {stage_of(parts[1:]) for parts in ours if len(parts) > 1}


def stage_of(parts: list[str]) -> str:
    """Return the stage that a module below `kdcache` belongs to."""
    nested = ".".join(parts[:2])
    return nested if nested in STAGES else parts[0]


LATER = {"data/beton.py": {"reader"}}
"""Later stages that a method of the public API loads when it is called: `Beton.pixels`."""


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_earlier_stages(module):
    path = module.relative_to(ROOT)
    stage = stage_of(list(path.with_suffix("").parts))
    later = LATER.get(str(path), set())
    assert imported_stages(module) - later <= set(STAGES[: STAGES.index(stage) + 1])


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_of_the_store_only_build_imports_teacher_and_reader(module):
    parts = module.relative_to(ROOT).with_suffix("").parts
    if parts[0] == "store" and parts[1] != "build":
        assert imported_stages(module).isdisjoint({"teacher", "reader", "store.build"})


def test_every_package_is_installed():
    about = tomllib.loads(PYPROJECT.read_text())["tool"]["setuptools"]
    folders = [path.parent.relative_to(ROOT.parent) for path in ROOT.rglob("__init__.py")]
    named = {".".join(folder.parts) for folder in folders}
    assert set(about["packages"]) == named | about["package-dir"].keys()


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_an_init_file_holds_a_docstring_and_nothing_else(module):
    if module.name != "__init__.py":
        return
    (statement,) = ast.parse(module.read_text()).body
    assert isinstance(statement, ast.Expr)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_imports_ffcv(module):
    """Its import sets the threads of torch and numba to 1 and takes ten seconds."""
    assert not re.search(r"^\s*(import|from) ffcv\b", module.read_text(), re.MULTILINE)


THREADS = """
import numba, torch
torch.set_num_threads(3)
before = torch.get_num_threads(), numba.get_num_threads()
import kdcache.store.build.build, kdcache.training.train
assert (torch.get_num_threads(), numba.get_num_threads()) == before
"""


def test_the_package_leaves_the_number_of_threads_alone():
    assert subprocess.run([sys.executable, "-c", THREADS], check=False).returncode == 0


@pytest.mark.parametrize("heavy", ["torch", "torchvision", "ffcv", "numba", "zarr", "pyarrow"])
@pytest.mark.parametrize("module", ["kdcache", "kdcache.cli", "kdcache.commands"])
def test_importing_the_package_is_light(module, heavy):
    code = f"import sys, {module}; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("heavy", ["torch", "ffcv"])
@pytest.mark.parametrize("module", ["kdcache.selection.select", "kdcache.store.logit_store"])
def test_a_store_is_read_without_a_deep_learning_framework(module, heavy):
    code = f"import sys, {module}; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
