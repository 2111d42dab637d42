"""Every package that the tests import is declared, and the version is written in one place."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import kdcache

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OURS = {"kdcache", "tests"} | {path.stem for path in ROOT.glob("*/*.py")}


def normalized(requirement: str) -> str:
    """Return the name of a package as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=;!~]", requirement)[0]).lower()


def imported_by_tests() -> set[str]:
    names = set()
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - OURS


def test_every_package_that_tests_import_is_declared():
    declared = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
    names = {normalized(requirement) for requirement in declared}
    owners = packages_distributions()
    undeclared = {
        module
        for module in imported_by_tests()
        if not names & {normalized(owner) for owner in owners.get(module, [module])}
    }
    assert undeclared == set()


def test_the_version_is_written_in_one_place():
    assert "version" not in PROJECT
    assert version("kdcache") == kdcache.__version__
